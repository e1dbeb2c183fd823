//! Accounts, sessions and the audit log.

use fleet_protocol::secret::Secret;
use serde_json::json;

use super::*;
use crate::model::activity::{ActivityFilter, NewActivity};
use crate::model::user::{
    NewUser, Role, User, UserFilter, UserId, UserOrder, UserPatch, UserRefusal,
};

fn new_user(name: &str, role: Role) -> NewUser {
    NewUser {
        name: name.into(),
        email: format!("{name}@Example.com"),
        password_hash: Secret::new("$argon2id$x"),
        role,
        is_api_only: false,
        must_reset: true,
    }
}

async fn add(bed: &Bed, name: &str, role: Role) -> User {
    let added = bed.store.add_user(&new_user(name, role), false).await;
    added.unwrap().unwrap()
}

pub(super) async fn accounts_are_kept(bed: &Bed) {
    assert!(!bed.store.has_users().await.unwrap());
    let ada = add(bed, "Ada", Role::Admin).await;
    assert_eq!(bed.store.user(ada.id).await.unwrap(), Some(ada.clone()));
    let found = bed.store.user_by_email(" ADA@example.COM ").await.unwrap();
    assert_eq!(found, Some(ada.clone()));
    let again = new_user("ada", Role::Observer);
    let refused = bed.store.add_user(&again, false).await.unwrap();
    assert_eq!(refused, Err(UserRefusal::EmailTaken));
    let first = new_user("first", Role::Admin);
    let refused = bed.store.add_user(&first, true).await.unwrap();
    assert_eq!(refused, Err(UserRefusal::NotFirst));
    let bob = add(bed, "bob", Role::Observer).await;
    assert!(bob.id > ada.id);
    let patch = UserPatch {
        name: Some("Robert".into()),
        role: Some(Role::Maintainer),
        must_reset: Some(false),
        ..UserPatch::default()
    };
    let (before, after) = bed
        .store
        .update_user(bob.id, &patch)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(before, bob);
    assert_eq!(
        (after.name.as_str(), after.role),
        ("Robert", Role::Maintainer)
    );
    assert_eq!(bed.store.user(bob.id).await.unwrap(), Some(after));
    let taken = UserPatch {
        email: Some("ADA@example.com".into()),
        ..UserPatch::default()
    };
    let refused = bed.store.update_user(bob.id, &taken).await.unwrap();
    assert_eq!(refused, Err(UserRefusal::EmailTaken));
    let names =
        |users: Vec<User>| -> Vec<String> { users.into_iter().map(|one| one.name).collect() };
    let filter = UserFilter {
        order: UserOrder::Name,
        is_descending: true,
        ..UserFilter::default()
    };
    assert_eq!(
        names(bed.store.users(&filter).await.unwrap()),
        ["Robert", "Ada"]
    );
    let filter = UserFilter {
        text: Some("ROB".into()),
        ..UserFilter::default()
    };
    assert_eq!(names(bed.store.users(&filter).await.unwrap()), ["Robert"]);
    let filter = UserFilter {
        per_page: 1,
        page: 1,
        ..UserFilter::default()
    };
    assert_eq!(names(bed.store.users(&filter).await.unwrap()), ["Robert"]);
}

pub(super) async fn an_admin_always_stays(bed: &Bed) {
    let ada = add(bed, "ada", Role::Admin).await;
    let lower = UserPatch {
        role: Some(Role::Observer),
        ..UserPatch::default()
    };
    let refused = bed.store.update_user(ada.id, &lower).await.unwrap();
    assert_eq!(refused.unwrap_err(), UserRefusal::LastAdmin);
    let refused = bed.store.delete_user(ada.id).await.unwrap();
    assert_eq!(refused.unwrap_err(), UserRefusal::LastAdmin);
    let bob = add(bed, "bob", Role::Admin).await;
    // Each of the two nodes takes away one of the two.
    let other = bed.node().await;
    let (one, two) = tokio::join!(
        bed.store.delete_user(ada.id),
        other.update_user(bob.id, &lower)
    );
    let outcomes = [one.unwrap().is_ok(), two.unwrap().is_ok()];
    assert_eq!(outcomes.iter().filter(|is_done| **is_done).count(), 1);
    let missing = bed.store.delete_user(UserId(99)).await.unwrap();
    assert_eq!(missing.unwrap_err(), UserRefusal::Missing);
}

pub(super) async fn sessions_are_found_by_their_token_and_end(bed: &Bed) {
    let ada = add(bed, "ada", Role::Admin).await;
    let bob = add(bed, "bob", Role::Admin).await;
    let (old, new) = (UnixSeconds(1000), UnixSeconds(2000));
    let store = &bed.store;
    let one = store.add_session(ada.id, &[1; 32], old).await.unwrap();
    let two = store.add_session(ada.id, &[2; 32], new).await.unwrap();
    store.add_session(bob.id, &[3; 32], new).await.unwrap();
    let (session, user) = store.session_by_token(&[1; 32]).await.unwrap().unwrap();
    assert_eq!((session.id, session.used_at, user), (one, old, ada.clone()));
    assert_eq!(store.session_by_token(&[9; 32]).await.unwrap(), None);
    store
        .mark_sessions(&[(one, UnixSeconds(1500)), (two, UnixSeconds(1500))])
        .await
        .unwrap();
    let used: Vec<_> = store
        .sessions_of(ada.id)
        .await
        .unwrap()
        .iter()
        .map(|session| session.used_at.0)
        .collect();
    assert_eq!(used, [1500, 2000], "never back");
    assert_eq!(store.end_idle_sessions(UnixSeconds(1800)).await.unwrap(), 1);
    assert_eq!(store.user_session(one).await.unwrap(), None);
    store.add_session(ada.id, &[4; 32], new).await.unwrap();
    assert_eq!(store.end_sessions_of(ada.id, Some(two)).await.unwrap(), 1);
    assert!(store.end_session(two).await.unwrap());
    assert!(!store.end_session(two).await.unwrap());
    assert!(store.delete_user(bob.id).await.unwrap().is_ok());
    assert_eq!(store.session_by_token(&[3; 32]).await.unwrap(), None);
    for number in 0..300_u32 {
        let mut hash = [7; 32];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        let at = UnixSeconds(5000 + number);
        store.add_session(ada.id, &hash, at).await.unwrap();
    }
    let sessions = store.sessions_of(ada.id).await.unwrap();
    assert_eq!(sessions.len(), 256);
    assert!(sessions.iter().all(|session| session.used_at.0 >= 5044));
}

pub(super) async fn activities_are_added_listed_and_pruned(bed: &Bed) {
    let entry = |at: u32| NewActivity {
        at: UnixSeconds(at),
        actor: UserId(3),
        actor_name: "Ada".into(),
        actor_email: "ada@example.com".into(),
        address: "192.0.2.7".into(),
        kind: if at < 5 {
            "deleted_host"
        } else {
            "created_user"
        },
        subject_kind: "host",
        subject_name: "x".repeat(400),
        subject_id: 9,
        details: json!({"before": {"a": 1}}),
    };
    let entries: Vec<_> = (0..10).map(entry).collect();
    bed.store.add_activities(&entries).await.unwrap();
    let filter = ActivityFilter {
        per_page: 3,
        ..ActivityFilter::default()
    };
    let found = bed.store.activities(&filter).await.unwrap();
    let at: Vec<_> = found.iter().map(|one| one.at.0).collect();
    assert_eq!(at, [9, 8, 7, 6], "one more than a page");
    let newest = &found[0];
    assert_eq!(newest.details, json!({"before": {"a": 1}}));
    assert_eq!((newest.actor, newest.subject_id), (UserId(3), 9));
    assert_eq!(newest.subject_name.len(), 255);
    let filter = ActivityFilter {
        per_page: 100,
        is_ascending: true,
        kind: Some("deleted_host".into()),
        text: Some("ADA".into()),
        ..ActivityFilter::default()
    };
    assert_eq!(bed.store.activities(&filter).await.unwrap().len(), 5);
    let pruned = async |kinds: &[&str], kept| {
        let gone = bed.store.prune_activities(UnixSeconds(3), kinds, kept);
        gone.await.unwrap()
    };
    assert_eq!(pruned(&[], 5).await, 3, "too old");
    assert_eq!(
        pruned(&["created_user"], 5).await,
        0,
        "all among the newest"
    );
    assert_eq!(pruned(&["user_logged_in", "deleted_host"], 5).await, 2);
    assert_eq!(pruned(&["user_logged_in", "deleted_host"], 5).await, 0);
    let filter = ActivityFilter {
        per_page: 100,
        ..ActivityFilter::default()
    };
    assert_eq!(bed.store.activities(&filter).await.unwrap().len(), 5);
}
