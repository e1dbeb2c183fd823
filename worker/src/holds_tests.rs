use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

fn read(host: u32) -> IdleRead {
    IdleRead::of(&crate::hosts::test_host(host, "key"))
}

fn calm(now: Instant) -> Surroundings {
    Surroundings {
        now,
        unix_now: UnixSeconds(1_000),
        work_due_at: Some(UnixSeconds(u32::MAX)),
        is_leaving: false,
        is_crowded: false,
    }
}

#[test]
fn each_reason_ends_a_hold() {
    let (start, holds) = (Instant::now(), Rc::default());
    let until = start + Duration::from_secs(10);
    let hold = Hold::new(&holds, read(1), until, Waker::noop()).unwrap();
    let calm = calm(start);
    let judged = |change: fn(&mut Surroundings)| {
        let mut around = calm;
        change(&mut around);
        hold.judge(&around)
    };
    let second = Duration::from_secs(1);
    assert_eq!(hold.judge(&calm), Verdict::Goes(until));
    assert_eq!(
        hold.judge(&Surroundings {
            work_due_at: Some(UnixSeconds(1_003)),
            ..calm
        }),
        Verdict::Goes(start + 3 * second),
        "work falls due during the hold"
    );
    assert_eq!(
        hold.judge(&Surroundings {
            now: until - second,
            work_due_at: None,
            ..calm
        }),
        Verdict::Goes(until),
        "a key that is no longer known"
    );
    assert_eq!(
        judged(|around| around.work_due_at = Some(UnixSeconds(1_000))),
        Verdict::Ends(HoldEnd::Work)
    );
    assert_eq!(
        judged(|around| around.is_leaving = true),
        Verdict::Ends(HoldEnd::Drained)
    );
    assert_eq!(
        judged(|around| around.is_crowded = true),
        Verdict::Ends(HoldEnd::Crowded)
    );
    assert_eq!(
        judged(|around| around.now += Duration::from_secs(10)),
        Verdict::Ends(HoldEnd::Expired)
    );
    let _second = Hold::new(&holds, read(1), until, Waker::noop());
    assert_eq!(hold.judge(&calm), Verdict::Ends(HoldEnd::Superseded));
}

#[test]
fn an_end_is_counted_once() {
    let holds = Rc::default();
    let begin = |host| Hold::new(&holds, read(host), Instant::now(), Waker::noop()).unwrap();
    assert_eq!(begin(1).end(HoldEnd::Work), Some(read(1)));
    drop(begin(2));
    holds.borrow_mut().count(HoldEnd::Crowded);
    assert_eq!(holds.borrow().ends(), [0, 1, 1, 0, 0, 1]);
    assert_eq!(holds.borrow().len(), 0);
}

#[test]
fn a_hold_is_small() {
    // Besides these, a pointer in the session and a place in the index.
    assert!(size_of::<Entry>() <= 56, "{}", size_of::<Entry>());
    assert!(size_of::<Hold>() <= 16, "{}", size_of::<Hold>());
}

#[derive(Clone, Debug)]
enum Step {
    /// Of this host, under this name.
    Begin(u32, u8),
    End(u8),
    Wake(u32),
    WakeAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || any::<u8>().prop_map(|name| name % 12);
    let step = prop_oneof![
        4 => (0_u32..8, name()).prop_map(|(host, name)| Step::Begin(host, name)),
        3 => name().prop_map(Step::End),
        3 => (0_u32..8).prop_map(Step::Wake),
        1 => Just(Step::WakeAll),
    ];
    prop::collection::vec(step, 0..120)
}

/// A held read of the model.
struct Held {
    hold: Hold,
    host: u32,
    is_superseded: bool,
    woken: Arc<Count>,
}

proptest! {
    /// Against a model: names of open holds; a wake reaches exactly the latest hold of its host, and whoever is
    /// superseded.
    #[test]
    fn news_reaches_who_waits_for_it(steps in steps()) {
        let holds = Rc::default();
        let start = Instant::now();
        let until = start + Duration::from_secs(10);
        let mut model: BTreeMap<u8, Held> = BTreeMap::new();
        for step in steps {
            let mut expected: Vec<u8> = Vec::new();
            match step {
                Step::Begin(host, name) => {
                    model.remove(&name);
                    for (name, held) in &mut model {
                        if held.host == host && !held.is_superseded {
                            held.is_superseded = true;
                            expected.push(*name);
                        }
                    }
                    let woken = Arc::new(Count::default());
                    let waker = Waker::from(Arc::clone(&woken));
                    let hold = Hold::new(&holds, read(host), until, &waker).unwrap();
                    model.insert(name, Held { hold, host, is_superseded: false, woken });
                }
                Step::End(name) => {
                    let held = model.remove(&name);
                    if let Some(held) = held {
                        prop_assert_eq!(held.hold.end(HoldEnd::Expired), Some(read(held.host)));
                    }
                }
                Step::Wake(host) => {
                    holds.borrow().wake(HostId(host));
                    let latest = |held: &Held| held.host == host && !held.is_superseded;
                    expected.extend(model.iter().filter(|(_, held)| latest(held)).map(|(name, _)| *name));
                }
                Step::WakeAll => {
                    holds.borrow().wake_all();
                    expected.extend(model.keys());
                }
            }
            prop_assert_eq!(holds.borrow().len(), model.len());
            for (name, held) in &model {
                prop_assert_eq!(held.woken.take(), u32::from(expected.contains(name)), "{}", name);
                let verdict = held.hold.judge(&calm(start));
                let is_superseded = verdict == Verdict::Ends(HoldEnd::Superseded);
                prop_assert_eq!(is_superseded, held.is_superseded);
            }
        }
    }
}
