use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::agent_bench::{Bench, answers_of, enroll};
use crate::agents::now;
use crate::host_config::{Composer, Specs};
use crate::labels::LabelPlan;
use crate::model::host::{HostColumns, HostState};
use crate::model::label::{Label, LabelId, LabelSpec};
use crate::roster::Roster;
use crate::work::Schedule;
use fleet_protocol::agent::{Answer, Request};
use fleet_protocol::ids::{NodeKeyHash, RequestId};
use fleet_protocol::link::BatchKind;

const START: UnixSeconds = UnixSeconds(1_800_000_000);
const SCHEDULE: Schedule = Schedule {
    detail_interval_s: 3600,
    label_interval_s: 3600,
    jitter_percent: 10,
};

fn pacer(per_second: u32) -> Pacer {
    Pacer::new(rate_of(&SCHEDULE, per_second, EngineName::Sqlite))
}

fn asker(host: u32, since: u32, wait: Wait) -> Asker {
    Asker {
        host: HostId(host),
        since: UnixSeconds(since),
        interval_s: 10,
        wait,
    }
}

#[test]
fn the_automatic_rate_follows_store_and_hosts() {
    let rate = |engine| rate_of(&SCHEDULE, 0, engine);
    assert_eq!(rate(EngineName::Sqlite).per_second(0), RATE_EMBEDDED);
    assert_eq!(rate(EngineName::Mysql).per_second(50_000), RATE_MYSQL);
    // A million hosts are 278 a second, in the long run.
    assert_eq!(rate(EngineName::Mysql).per_second(1_000_000), 4 * 278);
    assert_eq!(
        rate_of(&SCHEDULE, 7, EngineName::Mysql).per_second(1_000_000),
        7
    );
    assert_eq!(rate_of(&SCHEDULE, 7, EngineName::Mysql).herd_s(70), 10);
}

#[test]
fn the_longest_waiting_go_first() {
    let mut pacer = pacer(1);
    let (young, old) = (START.0 - 100, START.0 - 5_000);
    pacer.skip_second(START);
    let mut waits = Vec::new();
    // The young ones ask first, and fill more than the lead.
    for host in 0..100 {
        match pacer.ask(&asker(host, young, Wait::default()), 200, START) {
            Turn::At(_, wait) => waits.push(wait),
            Turn::Now => panic!("served in a skipped second"),
        }
    }
    for host in 100..150 {
        let turn = pacer.ask(&asker(host, old, Wait::default()), 200, START);
        assert!(matches!(turn, Turn::At(..)), "{turn:?}");
    }
    assert_eq!(pacer.waiting(), 150);
    // There is a place in this second, but fifty come before.
    let next = after(START, 1);
    let turn = pacer.ask(&asker(0, young, waits[0]), 200, next);
    assert!(matches!(turn, Turn::At(at, _) if at > next), "{turn:?}");
    // One of the fifty is near enough.
    let first = (100..150).find(|host| {
        pacer.ask(&asker(*host, old, Wait(age(UnixSeconds(old)))), 200, next) == Turn::Now
    });
    assert!(first.is_some());
    assert_eq!(pacer.waiting(), 149);
    assert_eq!(pacer.statistics(200).served, 1);
}

#[test]
fn who_is_gone_holds_nobody_up() {
    let mut pacer = pacer(1);
    let mut waits = Vec::new();
    for host in 0..1_000 {
        match pacer.ask(&asker(host, START.0 - 9_000, Wait::default()), 2_000, START) {
            Turn::At(_, wait) => waits.push(wait),
            Turn::Now => {}
        }
    }
    let later = after(START, 1);
    let late = asker(5_000, START.0, Wait::default());
    assert!(matches!(pacer.ask(&late, 2_000, later), Turn::At(..)));
    pacer.leave(Wait(age(START)));
    waits.into_iter().for_each(|wait| pacer.leave(wait));
    assert_eq!(pacer.waiting(), 0);
    assert_eq!(pacer.ask(&late, 2_000, after(START, 2)), Turn::Now);
    assert!(Pacer::is_lost(START, 10, after(START, 500)));
    assert!(!Pacer::is_lost(START, 10, after(START, 100)));
}

proptest! {
    #[test]
    fn the_rate_holds_and_everybody_is_counted_once(
        rate in 1_u32..5,
        asks in prop::collection::vec((0_u32..40, 0_u32..20_000, 0_u32..3, any::<bool>()), 0..300),
    ) {
        let mut pacer = pacer(rate);
        let mut waits = [Wait::default(); 40];
        let (mut now, mut served) = (START, 0);
        for (host, waited_s, pause_s, leaves) in asks {
            if pause_s > 0 {
                now = after(now, pause_s);
                served = 0;
            }
            let wait = &mut waits[host as usize];
            if leaves {
                pacer.leave(std::mem::take(wait));
                continue;
            }
            match pacer.ask(&asker(host, now.0 - waited_s, *wait), 40, now) {
                Turn::Now => {
                    served += 1;
                    *wait = Wait::default();
                }
                Turn::At(at, age) => {
                    prop_assert!(at > now && at <= after(now, RENEW_S));
                    prop_assert!(age.is_waiting());
                    *wait = age;
                }
            }
            prop_assert!(served <= rate);
            let waiting = waits.iter().filter(|wait| wait.is_waiting()).count();
            prop_assert_eq!(pacer.waiting() as usize, waiting);
            prop_assert_eq!(pacer.waiting.values().sum::<u32>(), pacer.waiting());
        }
    }
}

/// Times in the store, by host.
type Stored = Vec<(UnixSeconds, UnixSeconds)>;

/// Hosts that poll every `poll_s`, each in a second of its own, over the roster and a store that is two times a host.
struct Herd {
    roster: Roster,
    stored: Stored,
    poll_s: u32,
    /// Hosts by the second of the interval in which they poll.
    by_phase: Vec<Vec<u32>>,
    /// By second since the start.
    handed_out: Vec<u32>,
    /// What reached control, by second.
    asked: Vec<u32>,
    /// Second at which a host's details were written.
    done_at: Vec<Option<u32>>,
}

impl Herd {
    fn new(stored: Stored, rate: u32, poll_s: u32, now: UnixSeconds) -> Self {
        let mut by_phase = vec![Vec::new(); poll_s as usize];
        for id in 1..=u32::try_from(stored.len()).unwrap() {
            let phase = spread(HostId(id), poll_s - 1, Salt::Cycle);
            by_phase[phase as usize].push(id);
        }
        let mut herd = Self {
            by_phase,
            roster: roster(rate),
            done_at: vec![None; stored.len()],
            stored,
            poll_s,
            handed_out: Vec::new(),
            asked: Vec::new(),
        };
        herd.restart(rate, now);
        herd
    }

    /// Control starts anew and knows what the store knows.
    fn restart(&mut self, rate: u32, now: UnixSeconds) {
        self.roster = roster(rate);
        for (id, (details, labels)) in (1..).zip(&self.stored) {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&u32::to_be_bytes(id));
            let state = HostState {
                id: HostId(id),
                key: NodeKeyHash(key),
                platform: "ubuntu".into(),
                labels: vec![LabelId::ALL_HOSTS],
                detail_updated_at: *details,
                label_updated_at: *labels,
                refetch_requested: false,
                enrolled_at: UnixSeconds(START.0 - 1_000_000),
                interval_s: u16::try_from(self.poll_s).unwrap(),
                names: None,
            };
            self.roster.apply_host(&state, now);
        }
        self.roster.publish(None);
        self.roster.skip_second(now);
    }

    /// Everything that happens within one second; agents answer at once.
    fn second(&mut self, now: UnixSeconds) {
        let (mut handed_out, mut asked) = (0, 0);
        for id in self.by_phase[(now.0 % self.poll_s) as usize].clone() {
            let host = HostId(id);
            if self.roster.feed_host(host).unwrap().work_due_at > now {
                continue;
            }
            asked += 1;
            let work = self.roster.hand_out(host, now).unwrap();
            if work.queries.is_empty() {
                continue;
            }
            handed_out += 1;
            let columns = HostColumns {
                distributed_interval: Some(self.poll_s.into()),
                ..HostColumns::default()
            };
            self.roster.details_stored(host, &columns, now);
            self.roster.labels_stored(host, &[], now);
            let index = id as usize - 1;
            self.stored[index] = (now, now);
            self.done_at[index] = Some(now.0 - START.0);
        }
        self.roster.publish(None);
        self.handed_out.push(handed_out);
        self.asked.push(asked);
    }

    fn late(&self, now: UnixSeconds) -> usize {
        let overdue = |(details, _): &&(UnixSeconds, UnixSeconds)| after(*details, 3960) < now;
        self.stored.iter().filter(overdue).count()
    }
}

fn roster(rate: u32) -> Roster {
    let mut roster = Roster::new(SCHEDULE, rate_of(&SCHEDULE, rate, EngineName::Sqlite));
    let label = Label {
        id: LabelId(9),
        spec: LabelSpec {
            name: "a".into(),
            query: "SELECT 1".into(),
            ..LabelSpec::default()
        },
        host_count: 0,
        updated_at: UnixSeconds(1),
    };
    let specs = Specs {
        labels: vec![label],
        ..Specs::default()
    };
    let plan = LabelPlan::of(&specs.labels, START);
    roster.set_specs(Arc::new(Composer::of(&specs)), plan);
    roster
}

/// A fleet whose hosts were last asked over the hour before an outage that began 4,600 seconds ago.
fn after_an_outage(hosts: u32) -> Stored {
    (1..=hosts)
        .map(|id| {
            let at = START.0 - 4_600 - spread(HostId(id), 3_599, Salt::Herd);
            (UnixSeconds(at), UnixSeconds(at))
        })
        .collect()
}

fn run_out(hosts: u32, rate: u32, poll_s: u32, restart_after_s: Option<u32>) -> Herd {
    let mut herd = Herd::new(after_an_outage(hosts), rate, poll_s, START);
    assert_eq!(herd.late(START), hosts as usize);
    let crowd = herd.by_phase.iter().map(Vec::len).max().unwrap();
    let bound_s = (u32::try_from(crowd).unwrap().div_ceil(rate) + 3) * poll_s;
    for second in 0..=bound_s {
        let now = after(START, second);
        if restart_after_s == Some(second) {
            herd.restart(rate, now);
        }
        herd.second(now);
    }
    let late = herd.done_at.iter().filter(|at| at.is_none()).count();
    assert_eq!(
        late, 0,
        "{hosts} hosts, {rate}/s, poll {poll_s}s: not all within {bound_s}s"
    );
    assert!(herd.handed_out.iter().all(|count| *count <= rate));
    herd
}

#[test]
fn fifty_thousand_hosts_after_an_hour_are_served_at_the_rate() {
    const POLL_S: u32 = 60;
    let whole = run_out(50_000, 500, POLL_S, None);
    // Control starts anew in the middle, and nearly everybody still has the same turn.
    let cut = run_out(50_000, 500, POLL_S, Some(50));
    let moved = |(whole, cut): (&Option<u32>, &Option<u32>)| whole.unwrap().abs_diff(cut.unwrap());
    let moved: Vec<u32> = whole.done_at.iter().zip(&cut.done_at).map(moved).collect();
    assert!(moved.iter().all(|seconds| *seconds <= 2 * POLL_S));
    assert!(moved.iter().filter(|seconds| **seconds == 0).count() > 40_000);
}

#[test]
fn rare_polls_and_small_rates_hold_the_bound_too() {
    run_out(1_000, 5, 10, Some(77));
    run_out(2_000, 20, 60, Some(40));
    run_out(60, 5, 1, None);
    run_out(3, 5, 60, None);
}

#[test]
fn the_longest_due_are_served_first() {
    let herd = run_out(5_000, 50, 10, None);
    let due_at = after_an_outage(5_000);
    let mut order: Vec<usize> = (0..5_000).collect();
    order.sort_by_key(|index| {
        let host = HostId(u32::try_from(*index).unwrap() + 1);
        due_at[*index].0.0 + spread(host, 360, Salt::Cycle)
    });
    let mean = |part: &[usize]| -> u32 {
        let sum: u32 = part.iter().map(|index| herd.done_at[*index].unwrap()).sum();
        sum / u32::try_from(part.len()).unwrap()
    };
    // First come, first served until all have asked once; by age from then on.
    let quarters: Vec<u32> = order.chunks(1_250).map(mean).collect();
    assert!(quarters.is_sorted(), "{quarters:?}");
    assert!(quarters[3] > quarters[0] + 30, "{quarters:?}");
}

/// One second of agents that poll each ten seconds, over the embedded store.
async fn store_second(agents: &crate::agents::Agents, hosts: &[HostId], at: UnixSeconds) {
    let polling = hosts.iter().filter(|host| host.0 % 10 == at.0 % 10);
    let reads = (1..)
        .map(RequestId)
        .zip(polling.map(|host| Request::Read(*host)));
    let reads: Vec<(RequestId, Request)> = reads.collect();
    let asked: Vec<HostId> = reads
        .iter()
        .map(|(_, request)| match request {
            Request::Read(host) => *host,
            other => panic!("{other:?}"),
        })
        .collect();
    let answers = agents.run_at(BatchKind::Read, reads, at).await;
    let mut writes = Vec::new();
    for ((id, answer), host) in answers.into_iter().zip(asked) {
        let Answer::Work(work) = answer else {
            panic!("{answer:?}");
        };
        if !work.queries.is_empty() {
            writes.push((id, Request::Write(answers_of(&work, host))));
        }
    }
    for (_, answer) in agents.run_at(BatchKind::Write, writes, at).await {
        assert_eq!(answer, Answer::Accepted);
    }
}

#[tokio::test]
async fn the_store_never_sees_more_than_the_rate() {
    const HOSTS: u32 = 400;
    const RATE: u32 = 20;
    let bench = Bench::new().await;
    let config = fleet_protocol::config::Config {
        osquery: fleet_protocol::config::Osquery {
            due_per_second: RATE,
            ..Default::default()
        },
        ..Default::default()
    };
    let mut agents = Bench::agents(&bench.store, &config).await;
    let requests = (1..=HOSTS).map(|number| {
        let enroll = enroll("s3cret", &format!("host-{number}"));
        (RequestId(number.into()), Request::Enroll(Box::new(enroll)))
    });
    let start = now();
    let answers = agents
        .run_at(BatchKind::Enroll, requests.collect(), start)
        .await;
    let hosts: Vec<HostId> = answers
        .into_iter()
        .map(|(_, answer)| match answer {
            Answer::Enrolled { host, .. } => host.id,
            other => panic!("{other:?}"),
        })
        .collect();
    for second in 0..=HOSTS / RATE + 30 {
        let at = after(start, second);
        if second == HOSTS / RATE / 2 {
            agents = Bench::agents(&bench.store, &config).await;
            agents.skip_second(at);
        }
        store_second(&agents, &hosts, at).await;
    }
    let filter = crate::model::host::HostFilter {
        per_page: HOSTS,
        ..Default::default()
    };
    let mut by_second = BTreeMap::<u32, u32>::new();
    for row in bench.store.host_list(&filter).await.unwrap() {
        *by_second.entry(row.detail_updated_at.0).or_default() += 1;
        assert!(row.label_updated_at.0 > 0);
    }
    assert_eq!(by_second.values().sum::<u32>(), HOSTS);
    assert!(!by_second.contains_key(&0));
    assert!(
        by_second.values().all(|count| *count <= RATE),
        "{by_second:?}"
    );
    assert_eq!(agents.statistics().pacer.waiting, 0);
    assert!(agents.statistics().pacer.peak <= RATE);
}
