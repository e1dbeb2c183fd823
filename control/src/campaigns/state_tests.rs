use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::ring::{Cursor, Entry};
use super::*;

const START: u32 = 1_800_000_000;
const OPTIONS: Options = Options {
    rows_max: 1_000,
    bytes_max: 1 << 20,
    linger_s: 60,
};

fn campaign(id: u32) -> Campaign {
    Campaign {
        id: CampaignId(id),
        name: String::new(),
        query_id: None,
        sql: "SELECT 1".into(),
        user_id: 0,
        user_name: String::new(),
        created_at: UnixSeconds(START),
        expires_at: UnixSeconds(START),
        ended_at: UnixSeconds(0),
        status: Status::Running,
        target_count: 0,
        tally: Tally::default(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u32, Vec<u32>),
    Call,
    Read(u32),
    Answer(u32, u32),
    Wait(u32),
    End(u32),
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (1_u32..5, prop::collection::vec(0_u32..8, 1..8)).prop_map(|(id, hosts)| Step::Begin(id, hosts)),
        4 => Just(Step::Call),
        6 => (0_u32..8).prop_map(Step::Read),
        6 => (1_u32..5, 0_u32..8).prop_map(|(id, host)| Step::Answer(id, host)),
        3 => (1_u32..90).prop_map(Step::Wait),
        1 => (1_u32..5).prop_map(Step::End),
        2 => Just(Step::Look),
    ];
    prop::collection::vec(step, 0..150)
}

/// What agents and viewers see of it.
#[derive(Default)]
struct World {
    state: State,
    called: RoaringBitmap,
    now: u32,
    /// By campaign and host, when it was handed out last.
    handed: BTreeMap<(u32, u32), u32>,
    answered: BTreeMap<u32, Vec<u32>>,
    seen: BTreeMap<u32, (Cursor, Vec<u32>)>,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Begin(id, hosts) => {
                let ring = Some(Ring::new(7));
                let now = UnixSeconds(self.now);
                let known = Known::new(campaign(id), hosts.into_iter().collect(), ring, now);
                self.state.add(known);
            }
            Step::Call => self.called |= self.state.calls.slice(),
            Step::Read(host) if self.called.contains(host) => self.read(host),
            // Its worker answers it alone.
            Step::Read(_) => {}
            Step::Answer(id, host) => self.answer(id, host),
            Step::Wait(seconds) => {
                self.now += seconds;
                // Rounds are late sometimes.
                if !seconds.is_multiple_of(3) {
                    self.state.turn(UnixSeconds(self.now));
                }
            }
            Step::End(id) => {
                let at = UnixSeconds(self.now);
                self.state.end(CampaignId(id), Status::Stopped, at);
            }
            Step::Look => (1..5).for_each(|id| self.look(id)),
        }
    }

    fn read(&mut self, host: u32) {
        for (id, hosts) in self.state.wanted(&[HostId(host)]) {
            for (host, claim) in self.state.claim(id, &hosts, UnixSeconds(self.now)) {
                if !claim.is_granted() {
                    continue;
                }
                let answered = self.answered.entry(id.0).or_default();
                assert!(!answered.contains(&host), "asked after its answer");
                let before = self.handed.insert((id.0, host), self.now);
                assert!(before.is_none_or(|at| self.now - at > 60), "asked too soon");
            }
        }
        self.called.remove(host);
        self.state.call_again([host]);
    }

    fn answer(&mut self, id: u32, host: u32) {
        let result = QueryResult {
            name: format!("{CAMPAIGN_PREFIX}{id}"),
            status: 0,
            message: String::new(),
            rows: "[{}]".into(),
            stats: String::new(),
        };
        let incoming = Incoming {
            campaign: CampaignId(id),
            host: HostId(host),
            result: result.clone(),
        };
        if self.state.judge(&incoming) == Some(Counted::Taken) {
            let result = HostResult::of(HostId(host), result);
            assert_eq!(
                self.state.take(CampaignId(id), result, &OPTIONS),
                Counted::Taken
            );
            self.answered.entry(id).or_default().push(host);
        }
    }

    fn look(&mut self, id: u32) {
        let ring = self
            .state
            .known
            .get(&CampaignId(id))
            .and_then(|known| known.ring.as_ref());
        let (cursor, seen) = self.seen.entry(id).or_default();
        for entry in ring.map(|ring| ring.after(*cursor)).unwrap_or_default() {
            *cursor = entry.cursor();
            if let Entry::Result(result) = entry {
                seen.push(result.host.0);
            }
        }
    }
}

proptest! {
    #[test]
    fn whoever_is_wanted_is_called_and_every_answer_is_seen_once(steps in steps()) {
        let mut world = World { now: START, ..World::default() };
        for step in steps {
            world.step(step);
            for host in 0..8 {
                if world.state.is_pending(host) {
                    let mut calls = world.state.calls.clone();
                    let is_called = world.called.contains(host) || calls.slice().contains(host);
                    prop_assert!(is_called, "host {host} is wanted, and nobody calls it");
                }
            }
        }
        world.step(Step::Look);
        for (id, answered) in &world.answered {
            prop_assert_eq!(&world.seen[id].1, answered);
        }
        let held: u64 = world.state.known.values().filter_map(|known| known.ring.as_ref()).map(Ring::bytes).sum();
        prop_assert_eq!(world.state.held_bytes, held);
    }
}

fn known(id: u32, hosts: &[u32]) -> Known {
    let targets = hosts.iter().copied().collect();
    Known::new(
        campaign(id),
        targets,
        Some(Ring::new(7)),
        UnixSeconds(START),
    )
}

fn large(host: u32, mib: usize) -> HostResult {
    let result = QueryResult {
        name: String::new(),
        status: 0,
        message: String::new(),
        rows: format!("[\"{}\"]", "x".repeat(mib << 20)),
        stats: String::new(),
    };
    HostResult::of(HostId(host), result)
}

#[test]
fn results_of_ended_campaigns_make_room_unless_viewed() {
    let options = Options {
        rows_max: 1_000,
        bytes_max: 1 << 30,
        linger_s: 60,
    };
    let mut state = State::default();
    for id in 1..5 {
        state.add(known(id, &[1, 2]));
    }
    for id in 1..4 {
        state.take(CampaignId(id), large(1, 60), &options);
    }
    state.known.get_mut(&CampaignId(1)).unwrap().viewers = 1;
    for id in 1..3 {
        state.end(CampaignId(id), Status::Stopped, UnixSeconds(START + id));
    }
    // Three times 60 MiB of 256 are held; this one fits only without one of them.
    state.take(CampaignId(4), large(1, 100), &options);
    let known: Vec<u32> = state.known.keys().map(|id| id.0).collect();
    assert_eq!(known, [1, 3, 4], "the second one ended, and nobody looks");
    assert_eq!(state.known[&CampaignId(4)].tally.hosts_cut, 0);
    state.take(CampaignId(4), large(2, 100), &options);
    assert_eq!(state.known[&CampaignId(4)].tally.hosts_cut, 1);
    // However long ago it ended.
    state.forget(UnixSeconds(START + 10_000));
    assert!(state.known.contains_key(&CampaignId(1)));
    state.known.get_mut(&CampaignId(1)).unwrap().viewers = 0;
    state.forget(UnixSeconds(START + 10_000));
    assert!(!state.known.contains_key(&CampaignId(1)));
}

#[test]
fn news_that_could_not_be_told_are_told_later() {
    let news = |host: u32, is_lost: bool| News {
        answered: [host].into(),
        tally: Tally {
            answered: u64::from(host),
            ..Tally::default()
        },
        is_lost,
    };
    let mut state = State::default();
    for id in 1..4 {
        state.add(known(id, &[1, 2]));
    }
    state.news.insert(CampaignId(2), news(2, false));
    state.news.insert(CampaignId(3), news(2, true));
    let old = (1..5).map(|id| (CampaignId(id), news(1, true)));
    state.tell_later(old.collect());
    assert_eq!(state.news.len(), 3, "the fourth is not known");
    assert_eq!(state.news[&CampaignId(1)], news(1, true));
    let both = &state.news[&CampaignId(2)];
    assert!(both.is_lost && both.answered.len() == 2 && both.tally.answered == 2);
    assert_eq!(state.news[&CampaignId(3)], news(2, true));
}
