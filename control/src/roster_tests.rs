use std::collections::{BTreeMap, BTreeSet};

use fleet_protocol::feed::Load;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::feed::LoadCursor;
use crate::host_config::Specs;
use crate::model::label::{Label, LabelSpec};
use crate::model::pack::{Pack, PackId, PackSpec};
use crate::pacer::rate_of;
use crate::store::EngineName;

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

fn roster() -> Roster {
    let schedule = Schedule {
        detail_interval_s: 3600,
        label_interval_s: 3600,
        jitter_percent: 10,
    };
    Roster::new(schedule, rate_of(&schedule, 0, EngineName::Sqlite))
}

fn state(id: u32, key: u8, platform: &str, labels: &[u32]) -> HostState {
    HostState {
        id: HostId(id),
        key: NodeKeyHash([key; 32]),
        platform: platform.into(),
        labels: labels.iter().copied().map(LabelId).collect(),
        detail_updated_at: UnixSeconds(0),
        label_updated_at: UnixSeconds(0),
        refetch_requested: false,
        enrolled_at: NOW,
        interval_s: 0,
        names: None,
    }
}

fn specs(targets: &[(&str, &[u32])], options: serde_json::Value) -> Specs {
    let packs = targets.iter().map(|(name, labels)| Pack {
        id: PackId(1),
        spec: PackSpec {
            name: (*name).to_owned(),
            ..PackSpec::default()
        },
        labels: labels.iter().copied().map(LabelId).collect(),
        updated_at: NOW,
    });
    Specs {
        agent_options: options,
        packs: packs.collect(),
        ..Specs::default()
    }
}

fn label(id: u32, platform: &str, updated_at: UnixSeconds) -> Label {
    Label {
        id: LabelId(id),
        spec: LabelSpec {
            query: format!("SELECT {id}"),
            platform: platform.into(),
            ..LabelSpec::default()
        },
        host_count: 0,
        updated_at,
    }
}

/// What a worker holds that applies the feed as it says.
#[derive(Debug, Default, PartialEq)]
struct Worker {
    hosts: BTreeMap<NodeKeyHash, feed::Host>,
    answers: BTreeMap<AnswerId, Bytes>,
    seq: FeedSeq,
}

impl Worker {
    fn take(&mut self, piece: &Feed) {
        for change in &piece.changes {
            match change {
                Change::Host(host) => {
                    assert!(
                        self.answers.contains_key(&host.answer),
                        "host before its answer"
                    );
                    self.hosts.insert(host.key, *host);
                }
                Change::Forget(key) => {
                    self.hosts.remove(key);
                }
                Change::Answer { id, config } => {
                    self.answers.insert(*id, config.clone());
                }
                Change::DropAnswer(id) => {
                    assert!(
                        self.hosts.values().all(|host| host.answer != *id),
                        "answer in use dropped"
                    );
                    self.answers.remove(id);
                }
                Change::WorkDue { host, at } => {
                    let known = self.hosts.values_mut().filter(|known| known.id == *host);
                    known.for_each(|known| known.work_due_at = *at);
                }
                Change::Called { hosts, at } => {
                    let called = RoaringBitmap::deserialize_from(hosts.as_ref()).unwrap();
                    let known = self.hosts.values_mut();
                    let known = known.filter(|known| called.contains(known.id.0));
                    known.for_each(|known| known.work_due_at = *at);
                }
            }
        }
        self.seq = piece.seq;
    }

    fn load(roster: &Roster) -> Self {
        let mut worker = Self::default();
        let mut cursor = LoadCursor {
            seq: roster.hub().seq(),
            ..LoadCursor::default()
        };
        loop {
            let piece = roster.load_piece(&mut cursor);
            worker.take(&piece);
            if matches!(piece.load, Load::End | Load::Whole) {
                return worker;
            }
        }
    }

    fn drain(&mut self, queue: &mut mpsc::Receiver<Arc<Feed>>) {
        while let Ok(piece) = queue.try_recv() {
            self.take(&piece);
        }
    }

    fn ids(&self) -> BTreeSet<HostId> {
        self.hosts.values().map(|host| host.id).collect()
    }
}

#[test]
fn a_new_host_is_told_with_its_answer_and_work_is_handed_out_once() {
    let mut roster = roster();
    roster.set_specs(
        Arc::default(),
        LabelPlan::of(&[label(7, "linux", NOW)], NOW),
    );
    let mut queue = roster.subscribe();
    let mut worker = Worker::load(&roster);
    roster.apply_host(&state(1, 1, "ubuntu", &[1]), NOW);
    roster.publish(None);
    worker.drain(&mut queue);
    let host = worker.hosts[&NodeKeyHash([1; 32])];
    assert!(host.work_due_at <= NOW);
    assert_eq!(worker.answers[&host.answer], "{}");

    let work = roster.hand_out(HostId(1), NOW).unwrap();
    roster.publish(None);
    assert_eq!(work.accelerate_s, Some(ACCELERATE_S));
    let names: BTreeSet<&str> = work
        .queries
        .iter()
        .map(|query| query.name.as_str())
        .collect();
    assert_eq!(names.len(), work.queries.len());
    assert!(
        names.contains("fleet_label_query_7") && names.contains("fleet_detail_query_os_version")
    );
    assert!(
        work.queries
            .iter()
            .all(|query| !query.sql.is_empty() && !query.discovery.is_empty())
    );
    worker.drain(&mut queue);
    assert!(worker.hosts[&NodeKeyHash([1; 32])].work_due_at > NOW);
    assert!(roster.hand_out(HostId(1), NOW).unwrap().queries.is_empty());
    assert_eq!(roster.hand_out(HostId(2), NOW), None);
}

#[test]
fn answers_settle_what_was_handed_out() {
    let mut roster = roster();
    roster.apply_host(&state(1, 1, "", &[1]), NOW);
    roster.hand_out(HostId(1), NOW).unwrap();
    assert!(roster.expectation(HostId(1), NOW).unwrap().details);
    let columns = HostColumns {
        platform: Some("darwin".into()),
        hostname: Some("mac".into()),
        distributed_interval: Some(10),
        ..HostColumns::default()
    };
    roster.details_stored(HostId(1), &columns, NOW);
    let expectation = roster.expectation(HostId(1), NOW).unwrap();
    assert!(!expectation.details);
    assert_eq!(expectation.class, PlatformClass::Darwin);
    let work = roster.hand_out(HostId(1), NOW).unwrap();
    assert_eq!(work, Work::default());
    let mut refetch = state(1, 1, "darwin", &[1]);
    refetch.detail_updated_at = NOW;
    refetch.refetch_requested = true;
    roster.apply_host(&refetch, NOW);
    assert!(!roster.hand_out(HostId(1), NOW).unwrap().queries.is_empty());
}

#[test]
fn a_label_that_came_while_a_host_was_asked_is_asked_next() {
    let mut roster = roster();
    let composer = || Arc::new(Composer::of(&specs(&[], json!({}))));
    let first = label(7, "linux", NOW);
    roster.set_specs(composer(), LabelPlan::of(std::slice::from_ref(&first), NOW));
    roster.apply_host(&state(1, 1, "ubuntu", &[]), NOW);
    // The second label is stored one second before the hand-out and read two seconds after it.
    let handed_at = UnixSeconds(NOW.0 + 1);
    roster.hand_out(HostId(1), handed_at).unwrap();
    roster.labels_stored(HostId(1), &[], handed_at);
    let read_at = UnixSeconds(NOW.0 + 3);
    roster.set_specs(
        composer(),
        LabelPlan::of(&[first, label(8, "linux", NOW)], read_at),
    );
    let work = roster.hand_out(HostId(1), read_at).unwrap();
    assert!(work.queries.iter().any(|query| query.sql == "SELECT 8"));
}

#[test]
fn the_old_key_serves_a_minute_longer() {
    let mut roster = roster();
    let mut queue = roster.subscribe();
    let mut worker = Worker::load(&roster);
    roster.apply_host(&state(1, 1, "ubuntu", &[1]), NOW);
    roster.apply_host(&state(1, 2, "ubuntu", &[1]), NOW);
    roster.publish(None);
    let (old, new) = (NodeKeyHash([1; 32]), NodeKeyHash([2; 32]));
    assert_eq!(
        roster.find_key(&old).map(|host| (host.id, host.key)),
        Some((HostId(1), old))
    );
    assert_eq!(roster.find_key(&new).map(|host| host.id), Some(HostId(1)));
    roster.end_grace(UnixSeconds(NOW.0 + 59));
    worker.drain(&mut queue);
    assert!(worker.hosts.contains_key(&old) && worker.hosts.contains_key(&new));
    roster.end_grace(UnixSeconds(NOW.0 + 60));
    worker.drain(&mut queue);
    assert!(!worker.hosts.contains_key(&old) && worker.hosts.contains_key(&new));
    assert_eq!(roster.find_key(&old), None);
}

#[test]
fn a_key_that_came_back_is_not_forgotten() {
    let mut roster = roster();
    let mut queue = roster.subscribe();
    for key in [1, 2, 1] {
        roster.apply_host(&state(1, key, "ubuntu", &[1]), NOW);
    }
    roster.publish(None);
    roster.end_grace(UnixSeconds(NOW.0 + 60));
    let mut worker = Worker::default();
    worker.drain(&mut queue);
    assert_eq!(
        worker.hosts.keys().collect::<Vec<_>>(),
        [&NodeKeyHash([1; 32])]
    );
}

#[test]
fn new_specs_reach_hosts_and_answers() {
    let mut roster = roster();
    for id in 1..=6 {
        let labels: &[u32] = if id % 2 == 0 { &[1, 5] } else { &[1] };
        let platform = if id % 3 == 0 { "darwin" } else { "ubuntu" };
        roster.apply_host(&state(id, u8::try_from(id).unwrap(), platform, labels), NOW);
    }
    let mut queue = roster.subscribe();
    let mut worker = Worker::load(&roster);
    assert_eq!(worker.answers.len(), 1);
    let options =
        json!({"config": {"options": {"a": 1}}, "overrides": {"platforms": {"darwin": {}}}});
    let mut change = |roster: &mut Roster, worker: &mut Worker, specs: &Specs| {
        let composer = Arc::new(Composer::of(specs));
        roster.set_specs(Arc::clone(&composer), LabelPlan::default());
        for (id, key) in roster.configs_in_use() {
            roster.set_config(id, composer.compose(&key));
        }
        let mut from = Some(0);
        while let Some(place) = from {
            from = roster.respec(place);
        }
        worker.drain(&mut queue);
        assert_eq!(worker.answers.len(), roster.answers().len());
        assert_eq!(
            *worker,
            Worker {
                seq: worker.seq,
                ..Worker::load(roster)
            }
        );
    };
    change(&mut roster, &mut worker, &specs(&[("p", &[5])], options));
    assert_eq!(worker.answers.len(), 4);
    let config = String::from_utf8(roster.config_for(HostId(2)).unwrap().to_vec()).unwrap();
    assert_eq!(
        config,
        r#"{"options":{"a":1},"packs":{"p":{"queries":{}}}}"#
    );
    assert_eq!(roster.config_for(HostId(3)).unwrap(), "{}");
    change(
        &mut roster,
        &mut worker,
        &specs(&[], json!({"config": {"options": {"a": 2}}})),
    );
    assert_eq!(
        worker.answers.values().collect::<Vec<_>>(),
        [r#"{"options":{"a":2}}"#]
    );
}

#[test]
fn membership_moves_a_host_to_another_answer() {
    let mut roster = roster();
    roster.set_specs(
        Arc::new(Composer::of(&specs(&[("p", &[5])], json!({})))),
        LabelPlan::default(),
    );
    roster.apply_host(&state(1, 1, "ubuntu", &[1]), NOW);
    let mut queue = roster.subscribe();
    let mut worker = Worker::load(&roster);
    let before = worker.hosts[&NodeKeyHash([1; 32])].answer;
    roster.labels_stored(HostId(1), &[(LabelId(5), true)], NOW);
    roster.publish(None);
    worker.drain(&mut queue);
    let after = worker.hosts[&NodeKeyHash([1; 32])].answer;
    assert_ne!(before, after);
    assert_eq!(worker.answers.keys().collect::<Vec<_>>(), [&after]);
    roster.labels_stored(HostId(1), &[(LabelId(5), false)], NOW);
    roster.publish(None);
    worker.drain(&mut queue);
    assert_eq!(worker.hosts[&NodeKeyHash([1; 32])].answer, before);
}

#[test]
fn applying_twice_tells_once() {
    let mut roster = roster();
    roster.apply_host(&state(1, 1, "ubuntu", &[1, 2]), NOW);
    roster.publish(None);
    let mut queue = roster.subscribe();
    roster.apply_host(&state(1, 1, "ubuntu", &[1, 2]), NOW);
    roster.publish(None);
    assert!(queue.try_recv().is_err());
}

#[test]
fn a_large_load_comes_in_pieces() {
    let mut roster = roster();
    let count = u32::try_from(2 * CHANGES_PER_FEED_MAX).unwrap() + 7;
    for id in 1..=count {
        let mut host = state(id, 0, "ubuntu", &[1]);
        host.key.0[..4].copy_from_slice(&id.to_be_bytes());
        roster.apply_host(&host, NOW);
    }
    roster.publish(None);
    let mut cursor = LoadCursor::default();
    let (mut worker, mut loads) = (Worker::default(), Vec::new());
    while !matches!(loads.last(), Some(Load::End | Load::Whole)) {
        let piece = roster.load_piece(&mut cursor);
        assert!(piece.changes.len() <= CHANGES_PER_FEED_MAX);
        loads.push(piece.load);
        worker.take(&piece);
        if loads.len() == 1 {
            roster.remove_host(HostId(1), None);
            roster.remove_host(HostId(count), None);
        }
    }
    assert_eq!(loads, [Load::Begin, Load::Continue, Load::End]);
    assert_eq!(worker.hosts.len(), count as usize - 1);
}

#[derive(Clone, Debug)]
enum Step {
    Host(u32, u8, u8, Vec<u32>),
    Remove(u32),
    Labels(u32, u32, bool),
    HandOut(u32),
    Call(u32),
    Uncall(u32),
    Wait(u32),
    Advance,
    Leave,
    Resume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u32..6, 0_u8..3, 0_u8..3, prop::collection::vec(2_u32..6, 0..3))
            .prop_map(|(id, key, platform, labels)| Step::Host(id, key, platform, labels)),
        1 => (1_u32..6).prop_map(Step::Remove),
        2 => (1_u32..6, 2_u32..6, any::<bool>()).prop_map(|(id, label, is_in)| Step::Labels(id, label, is_in)),
        2 => (1_u32..6).prop_map(Step::HandOut),
        2 => (1_u32..6).prop_map(Step::Call),
        1 => (1_u32..6).prop_map(Step::Uncall),
        1 => (1_u32..100).prop_map(Step::Wait),
        2 => Just(Step::Advance),
        1 => Just(Step::Leave),
        1 => Just(Step::Resume),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// A worker that hears every piece, and leaves and resumes at will, ends with what a full load gives.
    #[test]
    fn the_feed_converges(steps in steps()) {
        let mut roster = roster();
        let specs = specs(&[("p", &[2]), ("q", &[3, 4])], json!({"overrides": {"platforms": {"darwin": {}}}}));
        roster.set_specs(Arc::new(Composer::of(&specs)), LabelPlan::of(&[label(2, "", NOW)], NOW));
        roster.restart_feed(FeedSeq(10), Recent::after(FeedSeq(10)));
        let mut now = NOW;
        let mut worker = Worker::load(&roster);
        let mut queue = Some(roster.subscribe());
        let mut known = BTreeSet::new();
        for step in steps.into_iter().chain([Step::Resume, Step::Wait(100)]) {
            match step {
                Step::Host(id, key, platform, labels) => {
                    // Keys are a host's own, as real ones are.
                    let key = u8::try_from(id).unwrap() * 10 + key;
                    let platform = ["", "ubuntu", "darwin"][usize::from(platform)];
                    let labels: BTreeSet<u32> = labels.into_iter().chain([1]).collect();
                    let labels: Vec<u32> = labels.into_iter().collect();
                    roster.apply_host(&state(id, key, platform, &labels), now);
                    known.insert(HostId(id));
                }
                Step::Remove(id) => {
                    roster.remove_host(HostId(id), None);
                    known.remove(&HostId(id));
                }
                Step::Labels(id, label, is_in) => roster.labels_stored(HostId(id), &[(LabelId(label), is_in)], now),
                Step::HandOut(id) => drop(roster.hand_out(HostId(id), now)),
                Step::Call(id) => roster.call(&[id].into()),
                Step::Uncall(id) => drop(roster.uncall(id)),
                Step::Wait(seconds) => {
                    now = UnixSeconds(now.0 + seconds);
                    roster.end_grace(now);
                }
                Step::Advance => {
                    let next = FeedSeq(roster.hub().seq().0 + 1);
                    roster.publish(Some(next));
                }
                Step::Leave => queue = None,
                Step::Resume if queue.is_none() => {
                    queue = Some(roster.subscribe());
                    for piece in roster.resume(worker.seq).expect("all is remembered") {
                        worker.take(&piece);
                    }
                }
                Step::Resume => {}
            }
            roster.publish(None);
            if let Some(queue) = &mut queue {
                worker.drain(queue);
                prop_assert_eq!(worker.ids(), known.clone());
            }
        }
        let mut full = Worker::load(&roster);
        // No worker may lack a call: nobody would tell it again.
        for host in worker.hosts.values().chain(full.hosts.values()) {
            if roster.call_of(host.id).is_some() {
                prop_assert_eq!(host.work_due_at, UnixSeconds(0));
            }
        }
        // Due times are hints: a worker that was away may hold older ones.
        for host in full.hosts.values_mut().chain(worker.hosts.values_mut()) {
            host.work_due_at = UnixSeconds(0);
        }
        prop_assert_eq!(&worker.hosts, &full.hosts);
        prop_assert_eq!(&worker.answers, &full.answers);
    }
}
