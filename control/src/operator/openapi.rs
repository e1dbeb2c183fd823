//! `GET …/openapi.json`: the API as an OpenAPI 3.1 document, made from the table of routes.
//!
//! Paths, methods, parameters in paths and roles come from the table, so that no route is missing; what a table cannot
//! say, such as the members of a body, is in `openapi.json` and is added where there is something for a route.

use axum::Json;
use axum::http::Method;
use serde_json::{Map, Value, json};

use super::roles::Least;
use super::routes;

/// Summaries, parameters, bodies and schemas, by route.
const DETAILS: &str = include_str!("openapi.json");

/// The handler. For whoever has signed in: clients are made with it, agents' networks have no use for it.
pub(super) async fn show() -> Json<Value> {
    let routes = routes::api();
    let lines = routes
        .iter()
        .map(|route| (&route.method, route.path, route.least));
    Json(document(lines))
}

/// The document of some routes.
fn document<'r>(routes: impl Iterator<Item = (&'r Method, &'r str, Least)>) -> Value {
    // Compiled in, and read by a test.
    let mut details: Map<String, Value> = serde_json::from_str(DETAILS).unwrap_or_default();
    let mut part = |name: &str| details.shift_remove(name).unwrap_or_else(|| json!({}));
    let (operations, schemas, parameters) =
        (part("operations"), part("schemas"), part("parameters"));
    let mut paths = Map::new();
    for (method, path, least) in routes {
        let name = format!("{method} {path}");
        let told = operations.get(&name).unwrap_or(&Value::Null);
        let item = paths
            .entry(path)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(item) = item.as_object_mut() {
            let method = method.as_str().to_lowercase();
            item.insert(method, operation(&name, path, least, told));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Fleet gateway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What operators and their tools ask, in the shapes that Fleet's clients know.",
        },
        "servers": [{"url": "/api/latest/fleet"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "parameters": parameters,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn operation(name: &str, path: &str, least: Least, told: &Value) -> Value {
    let mut parameters: Vec<Value> = path_parameters(path)
        .map(|name| {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}})
        })
        .collect();
    let named = told.get("parameters").and_then(Value::as_array);
    parameters.extend(
        named
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|name| json!({"$ref": format!("#/components/parameters/{name}")})),
    );
    let member = |name: &str| told.get(name).cloned();
    let media = told.get("media").and_then(Value::as_str);
    let answer = match (told.get("binary"), media) {
        (Some(_), _) => json!({"application/octet-stream": {}}),
        (None, Some(media)) => json!({ media: {} }),
        (None, None) => {
            json!({"application/json": {"schema": member("answer").unwrap_or_else(|| json!({"type": "object"}))}})
        }
    };
    let fault = json!({"schema": {"$ref": "#/components/schemas/Fault"}});
    let mut operation = json!({
        "operationId": operation_id(name),
        "summary": member("summary").unwrap_or_else(|| name.into()),
        "x-least-role": format!("{least:?}").to_lowercase(),
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", "content": answer},
            "default": {"description": "Refused.", "content": {"application/json": fault}},
        },
        "security": if least == Least::Nobody { json!([]) } else { json!([{"token": []}]) },
    });
    if let (Some(schema), Some(members)) = (member("body"), operation.as_object_mut()) {
        let content = json!({"application/json": {"schema": schema}});
        members.insert(
            "requestBody".into(),
            json!({"required": true, "content": content}),
        );
    }
    operation
}

fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    let parts = path.split('/');
    parts.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

/// Such as `get_hosts_id_refetch`.
fn operation_id(name: &str) -> String {
    let words = name.split(|character: char| !character.is_ascii_alphanumeric());
    let words: Vec<String> = words
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    words.join("_")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn table() -> BTreeSet<String> {
        let routes = routes::api();
        let names = routes
            .iter()
            .map(|route| format!("{} {}", route.method, route.path));
        names.collect()
    }

    #[tokio::test]
    async fn the_document_is_the_table() {
        let Json(document) = show().await;
        let mut operations = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                operations.insert(format!("{} {path}", method.to_uppercase()));
                assert!(ids.insert(operation["operationId"].to_string()), "{path}");
            }
        }
        assert_eq!(operations, table());
    }

    #[test]
    fn what_is_told_is_of_a_route_and_refers_to_what_there_is() {
        let details: Value = serde_json::from_str(DETAILS).unwrap();
        let table = table();
        for (name, operation) in details["operations"].as_object().unwrap() {
            assert!(table.contains(name), "no route {name:?}");
            assert!(operation["summary"].is_string(), "{name}");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let parameter = parameter.as_str().unwrap();
                assert!(details["parameters"][parameter].is_object(), "{parameter}");
            }
        }
        let text = details.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(details["schemas"][name].is_object(), "{name}");
        }
    }
}
