//! Hosts as operators see them.

use serde_json::json;

use super::*;

async fn three_hosts() -> Bench {
    let bench = Bench::new().await;
    for name in ["web-2", "web-1", "db-1"] {
        bench.enroll(name).await;
    }
    bench
}

#[tokio::test]
async fn hosts_are_listed_and_counted() {
    let bench = three_hosts().await;
    let list = bench.get("/hosts?order_key=hostname&per_page=2").await;
    let names: Vec<_> = list["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| &host["hostname"])
        .collect();
    assert_eq!(names, ["db-1", "web-1"]);
    assert_eq!(list["hosts"][0]["status"], "online");
    assert_eq!(
        bench
            .get("/hosts?order_key=hostname&per_page=2&page=1")
            .await["hosts"][0]["hostname"],
        "web-2"
    );
    assert_eq!(
        bench.get("/hosts?query=WEB").await["hosts"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(bench.get("/hosts/count").await["count"], 3);
    assert_eq!(bench.get("/hosts/count?status=online").await["count"], 3);
    assert_eq!(bench.get("/hosts/count?status=mia").await["count"], 0);
    assert_eq!(bench.get("/hosts/count?query=web").await["count"], 2);
    for (parameter, part) in [
        ("status=up", "status"),
        ("order_key=colour", "order_key"),
        ("order_direction=up", "order_direction"),
        ("per_page=many", "per_page"),
        ("per_page=10001", "per_page"),
    ] {
        let path = format!("{P}/hosts?{parameter}");
        let (status, body) = bench.local(Method::GET, &path, Value::Null).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["errors"][0]["name"], part, "{body}");
    }
}

#[tokio::test]
async fn hosts_are_found_and_deleted() {
    let bench = three_hosts().await;
    let host = bench.get("/hosts/identifier/uuid-web-1").await["host"].clone();
    assert_eq!(host["osquery_host_id"], "id-web-1");
    assert_eq!(host["labels"][0]["name"], "All Hosts");
    let id = host["id"].as_u64().unwrap();
    assert_eq!(
        bench.get(&format!("/hosts/{id}")).await["host"]["hostname"],
        "web-1"
    );
    let path = format!("{P}/hosts/{id}/refetch");
    assert_eq!(
        bench.local(Method::POST, &path, Value::Null).await.0,
        StatusCode::OK
    );
    assert_eq!(
        bench.get(&format!("/hosts/{id}")).await["host"]["refetch_requested"],
        true
    );
    let path = format!("{P}/hosts/{id}");
    assert_eq!(
        bench.local(Method::DELETE, &path, Value::Null).await.0,
        StatusCode::OK
    );
    assert_eq!(
        bench.local(Method::DELETE, &path, Value::Null).await.0,
        StatusCode::NOT_FOUND
    );
    let path = format!("{P}/hosts/web-2");
    assert_eq!(
        bench.local(Method::GET, &path, Value::Null).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(bench.get("/carves").await, json!({"carves": []}));
}

#[tokio::test]
async fn hosts_are_paged_by_key_and_by_label() {
    let bench = three_hosts().await;
    let names = async |path: &str| -> Vec<String> {
        let list = bench.get(path).await;
        let hosts = list["hosts"].as_array().unwrap().iter();
        hosts
            .map(|host| host["hostname"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("/hosts?after=1").await, ["web-1", "db-1"]);
    let path = "/hosts?order_key=hostname&order_direction=desc&after=web-2&per_page=1";
    assert_eq!(names(path).await, ["web-1"]);
    assert_eq!(names("/labels/1/hosts?query=db").await, ["db-1"]);
    assert_eq!(names("/labels/7/hosts").await, [""; 0]);
    assert_eq!(names("/hosts?platform=ubuntu&page=9").await, [""; 0]);
    let body = json!({"name": "some", "hosts": ["web-1", "id-db-1"]});
    let label = bench.send(Method::POST, "/labels", body).await["label"].clone();
    assert_eq!(label["count"], 2);
    assert_eq!(label["label_membership_type"], "manual");
    bench.look().await;
    let id = &label["id"];
    let path = format!("/hosts?label_id={id}&order_key=hostname");
    assert_eq!(names(&path).await, ["db-1", "web-1"]);
    assert_eq!(
        names(&format!("/labels/{id}/hosts?query=web")).await,
        ["web-1"]
    );
    let count = bench.get(&format!("/hosts/count?label_id={id}")).await;
    assert_eq!(count["count"], 2);
    for wrong in [
        "after=x",
        "order_key=seen_time&after=soon",
        "label_id=x",
        "page=-1",
    ] {
        let (status, _) = bench
            .fail(Method::GET, &format!("/hosts?{wrong}"), Value::Null)
            .await;
        assert_eq!(status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_summary_counts_all_hosts() {
    let bench = three_hosts().await;
    let summary = bench.get("/host_summary").await;
    for (name, count) in [
        ("totals_hosts_count", 3),
        ("online_count", 3),
        ("offline_count", 0),
        ("mia_count", 0),
        ("new_count", 3),
        ("all_linux_count", 3),
    ] {
        assert_eq!(summary[name], count, "{name}");
    }
    let platforms = json!([{"platform": "ubuntu", "hosts_count": 3}]);
    assert_eq!(summary["platforms"], platforms);
    assert_eq!(summary["builtin_labels"].as_array().unwrap().len(), 7);
}

#[tokio::test]
async fn many_hosts_are_deleted_and_never_all_by_mistake() {
    let bench = three_hosts().await;
    let path = "/hosts/delete";
    for wrong in [
        json!({}),
        json!({"ids": []}),
        json!({"filters": {}}),
        json!({"filters": {"status": null}}),
        json!({"filters": {"query": ""}}),
        json!({"filters": {"querry": "web"}}),
        json!({"ids": [1], "filters": {"query": "web"}}),
        json!({"ids": ["x"]}),
    ] {
        let (status, _) = bench.fail(Method::POST, path, wrong.clone()).await;
        assert_eq!(status, 400, "{wrong}");
    }
    assert_eq!(bench.get("/hosts/count").await["count"], 3);
    let body = json!({"filters": {"query": "web"}});
    let deleted = bench.send(Method::POST, path, body).await;
    assert_eq!(deleted["deleted"], 2);
    // Memory knows at once, not only after the next look.
    assert_eq!(bench.get("/hosts/count").await["count"], 1);
    bench.look().await;
    assert_eq!(bench.get("/hosts/count").await["count"], 1);
    let body = json!({"ids": [1, 2, 3]});
    let deleted = bench.send(Method::POST, path, body).await;
    assert_eq!(deleted["deleted"], 1);
}
