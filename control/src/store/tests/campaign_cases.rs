//! Campaigns, and the changes that tell of them.

use std::collections::BTreeSet;

use fleet_protocol::ids::{FeedSeq, UnixSeconds};

use super::{Bed, changes};
use crate::model::campaign::{NewCampaign, Status, Tally};
use crate::model::change::ChangeKind;
use crate::model::query::QueryId;
use crate::store::changes::{NewChange, write_changes};
use crate::store::pools::Purpose;

const START: UnixSeconds = UnixSeconds(1_800_000_000);

fn at(seconds: u32) -> UnixSeconds {
    UnixSeconds(START.0 + seconds)
}

fn new(name: &str) -> NewCampaign {
    NewCampaign {
        name: name.into(),
        query_id: Some(QueryId(7)),
        sql: "SELECT 'ä' FROM time;".into(),
        user_id: 3,
        user_name: "Ada".into(),
        targets: (0..100_000).step_by(3).collect(),
    }
}

pub(super) async fn campaigns_begin_and_end_once(bed: &Bed) {
    let store = &bed.store;
    let begin = async |name, most| store.campaign_begin(&new(name), START, at(60), most).await;
    let id = begin("one", 2).await.unwrap().unwrap();
    let other = begin("two", 2).await.unwrap().unwrap();
    assert_eq!(begin("three", 2).await, Ok(None));
    let campaign = store.campaign(id).await.unwrap().unwrap();
    assert_eq!(
        (campaign.name.as_str(), campaign.query_id),
        ("one", Some(QueryId(7)))
    );
    assert_eq!((campaign.user_id, campaign.user_name.as_str()), (3, "Ada"));
    assert_eq!(campaign.sql, "SELECT 'ä' FROM time;");
    assert_eq!((campaign.created_at, campaign.expires_at), (START, at(60)));
    assert_eq!(
        (campaign.status, campaign.target_count),
        (Status::Running, 33_334)
    );
    let targets = store.campaign_targets(id).await.unwrap().unwrap();
    assert_eq!(targets, new("one").targets);
    assert_eq!(store.campaigns_running().await.unwrap().len(), 2);

    // Who is looked at lives on, but not for ever, and never for less than before.
    let both = BTreeSet::from([id, other]);
    store
        .campaigns_extend(&[id].into(), at(90), 100)
        .await
        .unwrap();
    store.campaigns_extend(&both, at(80), 100).await.unwrap();
    store
        .campaigns_extend(&[id].into(), at(500), 100)
        .await
        .unwrap();
    assert_eq!(
        store.campaign(id).await.unwrap().unwrap().expires_at,
        at(100)
    );
    assert_eq!(store.campaigns_overdue(at(80)).await, Ok(vec![other]));

    let tally = Tally {
        answered: 5,
        failed: 1,
        rows: 1 << 40,
        bytes: 7,
        hosts_cut: 2,
        rows_cut: 9,
        bytes_cut: 11,
    };
    let end = async |id, overdue_at| {
        let ended = store.campaign_end(id, Status::Expired, &tally, at(95), overdue_at);
        ended.await.unwrap()
    };
    assert!(!end(id, Some(at(95))).await, "somebody looked meanwhile");
    assert!(end(other, Some(at(95))).await);
    assert!(!end(other, None).await, "it has ended");
    let ended = store.campaign(other).await.unwrap().unwrap();
    assert_eq!(
        (ended.status, ended.ended_at, ended.tally),
        (Status::Expired, at(95), tally)
    );
    assert!(begin("three", 2).await.unwrap().is_some());
    let listed: Vec<_> = store.campaigns().await.unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|one| one.name.as_str())
            .collect::<Vec<_>>(),
        ["three", "two", "one"]
    );

    assert_eq!(store.campaigns_prune(at(95)).await, Ok(0));
    assert_eq!(store.campaigns_prune(at(96)).await, Ok(1));
    assert_eq!(store.campaign(other).await, Ok(None));
}

pub(super) async fn changes_tell_of_campaigns(bed: &Bed) {
    let id = bed
        .store
        .campaign_begin(&new("one"), START, at(60), 9)
        .await
        .unwrap()
        .unwrap();
    let tally = Tally::default();
    let ended = bed
        .store
        .campaign_end(id, Status::Stopped, &tally, at(1), None)
        .await;
    assert_eq!(ended, Ok(true));
    // A newer build's.
    let mut session = bed.store.session(Purpose::Write).await.unwrap();
    let strange = NewChange::of(ChangeKind::Unknown(99));
    write_changes(&mut session, &[strange]).await.unwrap();
    drop(session);
    let told = changes(&bed.store, FeedSeq(0)).await;
    let told: Vec<_> = told.iter().map(|row| (row.kind, row.subject)).collect();
    let subject = i64::from(id.0);
    let expected = [
        (ChangeKind::Campaign, subject),
        (ChangeKind::Campaign, subject),
        (ChangeKind::Unknown(99), 0),
    ];
    assert_eq!(told, expected);
}
