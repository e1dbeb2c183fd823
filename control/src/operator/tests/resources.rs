//! Queries, labels, packs, targets and carves, one by one.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_query_lives_by_its_id() {
    let bench = Bench::new().await;
    let body = json!({"name": "users", "query": "SELECT 1", "interval": 60, "team_id": null});
    let query = bench.send(Method::POST, "/queries", body.clone()).await["query"].clone();
    assert_eq!(query["interval"], 60);
    assert_eq!(query["saved"], true);
    let id = &query["id"];
    assert_eq!(bench.fail(Method::POST, "/queries", body).await.0, 409);
    let path = format!("/queries/{id}");
    let patch = json!({"query": "SELECT 2", "name": "people"});
    let changed = bench.send(Method::PATCH, &path, patch).await["query"].clone();
    assert_eq!(changed["id"], *id);
    assert_eq!(changed["name"], "people");
    assert_eq!(changed["query"], "SELECT 2");
    assert_eq!(changed["interval"], 60);
    assert_eq!(bench.get(&path).await["query"], changed);
    let list = bench.get("/queries?query=PEO").await;
    assert_eq!(list["count"], 1);
    assert_eq!(list["queries"], json!([changed]));
    // What is wrong changes nothing, not even the name.
    let patch = json!({"name": "folk", "query": ""});
    assert_eq!(bench.fail(Method::PATCH, &path, patch).await.0, 422);
    assert_eq!(bench.get(&path).await["query"]["name"], "people");
    bench
        .apply(json!({"packs": [{"name": "p", "queries": [{"query": "people", "interval": 5}]}]}))
        .await;
    let listed = bench.get(&path).await["query"]["packs"][0]["name"].clone();
    assert_eq!(listed, "p");
    let rename = json!({"name": "folk"});
    assert_eq!(bench.fail(Method::PATCH, &path, rename).await.0, 409);
    let ids = json!({"ids": [id, 999]});
    assert_eq!(
        bench
            .fail(Method::POST, "/queries/delete", ids.clone())
            .await
            .0,
        409
    );
    bench.send(Method::DELETE, "/packs/p", Value::Null).await;
    let deleted = bench.send(Method::POST, "/queries/delete", ids).await;
    assert_eq!(deleted["deleted"], 1);
    assert_eq!(bench.fail(Method::GET, &path, Value::Null).await.0, 404);
    let path = format!("/queries/id/{id}");
    assert_eq!(bench.fail(Method::DELETE, &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_label_lives_by_its_id() {
    let bench = Bench::new().await;
    let host = bench.enroll("web-1").await;
    let body = json!({"name": "l", "query": "SELECT 1", "platform": "linux"});
    let label = bench.send(Method::POST, "/labels", body).await["label"].clone();
    assert_eq!(label["label_type"], "regular");
    let path = format!("/labels/{}", label["id"]);
    let patch = json!({"name": "linux", "description": "d"});
    let changed = bench.send(Method::PATCH, &path, patch).await["label"].clone();
    assert_eq!(
        (&changed["id"], &changed["name"]),
        (&label["id"], &json!("linux"))
    );
    assert_eq!(changed["query"], "SELECT 1");
    assert_eq!(bench.get(&path).await["label"], changed);
    let list = bench.get("/labels?order_key=id&per_page=2").await;
    assert_eq!(list["labels"][0]["name"], "All Hosts");
    assert_eq!(list["labels"][0]["count"], 1);
    assert_eq!(list["meta"]["has_next_results"], true);
    let summary = bench.get("/labels/summary").await;
    assert_eq!(summary["labels"].as_array().unwrap().len(), 8);
    assert_eq!(
        bench
            .fail(Method::PATCH, "/labels/1", json!({"name": "x"}))
            .await
            .0,
        422
    );
    assert_eq!(
        bench
            .fail(Method::DELETE, "/labels/id/1", Value::Null)
            .await
            .0,
        422
    );
    let taken = json!({"name": "All Hosts"});
    assert_eq!(bench.fail(Method::PATCH, &path, taken).await.0, 422);
    let body = json!({"name": "m", "host_ids": [host]});
    let manual = bench.send(Method::POST, "/labels", body).await["label"].clone();
    assert_eq!(manual["count"], 1);
    let wrong = json!({"name": "n", "host_ids": ["x"]});
    assert_eq!(bench.fail(Method::POST, "/labels", wrong).await.0, 422);
    let by_id = format!("/labels/id/{}", label["id"]);
    bench.send(Method::DELETE, &by_id, Value::Null).await;
    assert_eq!(bench.fail(Method::GET, &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_pack_lives_by_its_id() {
    let bench = Bench::new().await;
    bench.enroll("web-1").await;
    bench
        .apply(json!({"queries": [{"name": "q", "query": "SELECT 1"}]}))
        .await;
    let body = json!({"name": "p", "label_ids": [1], "host_ids": [], "team_ids": null});
    let pack = bench.send(Method::POST, "/packs", body.clone()).await["pack"].clone();
    assert_eq!(pack["label_ids"], json!([1]));
    assert_eq!(pack["total_hosts_count"], 1);
    assert_eq!(bench.fail(Method::POST, "/packs", body).await.0, 409);
    let path = format!("/packs/{}", pack["id"]);
    bench
        .apply(json!({"packs": [{
            "name": "p", "targets": {"labels": ["All Hosts"]},
            "queries": [{"query": "q", "name": "first", "interval": 7}],
        }]}))
        .await;
    let scheduled = bench.get(&format!("{path}/scheduled")).await["scheduled"].clone();
    assert_eq!(scheduled[0]["name"], "first");
    assert_eq!(scheduled[0]["query"], "SELECT 1");
    assert_eq!(scheduled[0]["pack_id"], pack["id"]);
    let patch = json!({"name": "renamed", "label_ids": [1, 7], "disabled": true});
    let changed = bench.send(Method::PATCH, &path, patch).await["pack"].clone();
    assert_eq!(changed["label_ids"], json!([1, 7]));
    assert_eq!(changed["query_count"], 1);
    assert_eq!(changed["id"], pack["id"]);
    assert_eq!(bench.get("/packs").await["packs"], json!([changed]));
    for wrong in [
        json!({"host_ids": [1]}),
        json!({"label_ids": [99]}),
        json!({"label_ids": 1}),
    ] {
        assert_eq!(bench.fail(Method::PATCH, &path, wrong).await.0, 422);
    }
    bench
        .send(
            Method::DELETE,
            &format!("/packs/id/{}", pack["id"]),
            Value::Null,
        )
        .await;
    assert_eq!(bench.fail(Method::GET, &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn targets_are_searched_and_counted() {
    let bench = Bench::new().await;
    for name in ["web-1", "web-2", "db-1"] {
        bench.enroll(name).await;
    }
    bench
        .apply(json!({"labels": [
            {"name": "web", "label_membership_type": "manual", "hosts": ["web-1", "web-2"]},
        ]}))
        .await;
    bench.look().await;
    let web = bench.get("/labels?query=web").await["labels"][0]["id"].clone();
    let body = json!({"query": "WEB", "selected": {"hosts": [1], "labels": []}});
    let found = bench.send(Method::POST, "/targets", body).await;
    assert_eq!(found["targets"]["hosts"].as_array().unwrap().len(), 1);
    assert_eq!(found["targets"]["hosts"][0]["hostname"], "web-2");
    assert_eq!(found["targets"]["labels"][0]["id"], web);
    assert_eq!(found["targets"]["labels"][0]["count"], 2);
    assert_eq!(found["targets_count"], 1);
    let count = async |selected: Value| {
        let body = json!({ "selected": selected });
        bench.send(Method::POST, "/targets/count", body).await["targets_count"].clone()
    };
    assert_eq!(count(json!({"labels": [web]})).await, 2);
    assert_eq!(count(json!({"labels": [web], "hosts": [3]})).await, 3);
    assert_eq!(count(json!({"labels": [1]})).await, 3);
    // Of a built-in label and of one of the others: nobody has told that it runs Linux.
    assert_eq!(count(json!({"labels": [web, 7]})).await, 0);
    assert_eq!(count(json!({})).await, 0);
    let body = json!({"selected": {"teams": [1]}});
    assert_eq!(
        bench.fail(Method::POST, "/targets/count", body).await.0,
        422
    );
}

#[tokio::test]
async fn what_fleet_has_and_we_have_not_is_told() {
    let bench = Bench::new().await;
    for kind in ["teams", "policies"] {
        let path = format!("/spec/{kind}");
        bench.send(Method::POST, &path, json!({"specs": []})).await;
        let (status, text) = bench
            .fail(Method::POST, &path, json!({"specs": [{}]}))
            .await;
        assert_eq!(status, 422);
        assert!(text.contains(kind), "{text}");
    }
}
