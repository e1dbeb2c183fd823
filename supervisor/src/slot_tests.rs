//! Laws of the slot.

use proptest::prelude::*;

use super::*;

fn killed() -> Event {
    Event::Exited {
        code: None,
        how: "signal 9".into(),
    }
}

fn drained(deadline: Duration, then: Then) -> Event {
    Event::Drain { deadline, then }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ready() -> Slot {
    let mut slot = Slot::new(Policy::Worker);
    launched(&mut slot, Duration::ZERO, 1);
    slot.step(Event::Ready, Duration::ZERO, 0.0);
    slot
}

/// Lets it die until it is parked; gives when that was.
fn crash_loop(slot: &mut Slot) -> Duration {
    loop {
        let due = slot.due_at().unwrap();
        launched(slot, due, 1);
        if slot.step(killed(), due, 0.0) != Action::None {
            return due;
        }
    }
}

fn launched(slot: &mut Slot, now: Duration, pid: u32) {
    assert_eq!(slot.step(Event::Timer, now, 0.5), Action::Launch);
    assert_eq!(slot.step(Event::Launched { pid }, now, 0.5), Action::None);
}

#[test]
fn a_dead_worker_comes_back() {
    let mut slot = Slot::new(Policy::Worker);
    launched(&mut slot, Duration::ZERO, 10);
    slot.step(Event::Ready, Duration::from_secs(1), 0.5);
    assert_eq!(slot.state(), SlotState::Ready);
    let now = Duration::from_secs(2);
    assert_eq!(slot.step(killed(), now, 0.5), Action::None);
    assert_eq!(slot.state(), SlotState::Backoff);
    assert_eq!(slot.step(Event::Timer, now, 0.5), Action::None);
    let due = slot.due_at().unwrap();
    launched(&mut slot, due, 11);
    assert_eq!((slot.restarts(), slot.pid()), (1, Some(11)));
}

#[test]
fn five_quick_deaths_park_a_worker_but_not_control() {
    for (policy, state) in [
        (Policy::Worker, SlotState::Parked),
        (Policy::Control, SlotState::Backoff),
    ] {
        let mut slot = Slot::new(policy);
        for pid in 1..=5 {
            let due = slot.due_at().unwrap();
            launched(&mut slot, due, pid);
            slot.step(killed(), slot.launched_at, 1.0);
        }
        assert_eq!(slot.state(), state);
    }
}

#[test]
fn a_fatal_worker_is_parked_with_its_reason() {
    let mut slot = Slot::new(Policy::Worker);
    launched(&mut slot, Duration::ZERO, 1);
    let reason = "lost descriptor".to_owned();
    slot.step(
        Event::Fatal {
            reason: reason.clone(),
        },
        Duration::ZERO,
        0.0,
    );
    let exited = Event::Exited {
        code: Some(EXIT_FATAL),
        how: "exit code 70".into(),
    };
    assert_eq!(
        slot.step(exited, Duration::ZERO, 0.0),
        Action::Park { reason }
    );
}

#[test]
fn fatal_control_ends_the_server_only_before_it_served() {
    let fatal = || Event::Fatal {
        reason: "run prepare db".into(),
    };
    let mut slot = Slot::new(Policy::Control);
    launched(&mut slot, Duration::ZERO, 1);
    slot.step(fatal(), Duration::ZERO, 0.0);
    assert!(matches!(
        slot.step(killed(), Duration::ZERO, 0.0),
        Action::End { .. }
    ));

    let mut slot = Slot::new(Policy::Control);
    launched(&mut slot, Duration::ZERO, 1);
    slot.step(Event::Ready, Duration::ZERO, 0.0);
    slot.step(fatal(), Duration::ZERO, 0.0);
    assert_eq!(slot.step(killed(), Duration::ZERO, 0.0), Action::None);
    assert_eq!(slot.state(), SlotState::Backoff);
}

#[test]
fn draining_kills_only_after_the_deadline() {
    let mut slot = Slot::new(Policy::Worker);
    launched(&mut slot, Duration::ZERO, 1);
    let deadline = Duration::from_secs(16);
    assert_eq!(
        slot.step(drained(deadline, Then::End), Duration::ZERO, 0.0),
        Action::Drain
    );
    assert_eq!(
        slot.step(Event::Timer, Duration::from_secs(15), 0.0),
        Action::None
    );
    assert_eq!(slot.step(Event::Timer, deadline, 0.0), Action::Kill);
    slot.step(killed(), deadline, 0.0);
    assert!(slot.is_over());
}

#[test]
fn a_worker_that_stands_still_is_aborted_and_then_killed() {
    let mut slot = ready();
    for missed in 0..MISSED_MAX - 1 {
        let is_suspect = missed >= MISSED_SUSPECT;
        let readiness = slot.readiness(false);
        assert_eq!(readiness == Readiness::Waiting, is_suspect, "{missed}");
        assert_eq!(slot.step(Event::Beat, seconds(1), 0.0), Action::None);
    }
    // A report in time is enough.
    slot.step(Event::Report, seconds(1), 0.0);
    assert_eq!(slot.readiness(false), Readiness::Ready);
    let actions: Vec<_> = (0..MISSED_MAX + ABORT_BEATS + 3)
        .map(|_| slot.step(Event::Beat, seconds(2), 0.0))
        .collect();
    let reason = "no report for 5 s".to_owned();
    let expected = |index: usize| match index {
        4 => Action::Abort {
            reason: reason.clone(),
        },
        6 => Action::Kill,
        _ => Action::None,
    };
    assert_eq!(actions, (0..10).map(expected).collect::<Vec<_>>());
    slot.step(killed(), seconds(3), 0.0);
    assert_eq!((slot.state(), slot.hangs()), (SlotState::Backoff, 1));
    let last_end = slot.last_end();
    assert_eq!(last_end, Some("no report for 5 s, ended by signal 9"));
}

#[test]
fn a_process_that_never_gets_ready_is_ended_unless_it_reports() {
    for (is_reporting, hangs) in [(true, 0), (false, 1)] {
        let mut slot = Slot::new(Policy::Control);
        launched(&mut slot, Duration::ZERO, 1);
        for _ in 0..2 * MISSED_STARTING_MAX {
            if is_reporting {
                slot.step(Event::Report, Duration::ZERO, 0.0);
            }
            slot.step(Event::Beat, Duration::ZERO, 0.0);
        }
        assert_eq!(slot.hangs(), hangs);
    }
}

#[test]
fn a_parked_slot_is_tried_again_later_each_time() {
    let mut slot = Slot::new(Policy::Worker);
    for minutes in [5, 10, 20, 40, 60, 60] {
        let now = crash_loop(&mut slot);
        assert_eq!(slot.due_at(), Some(now + seconds(60 * minutes)));
        assert!(slot.parked_for().unwrap().ends_with("last by signal 9"));
        assert_eq!(slot.readiness(false), Readiness::Out);
    }
    // A reload does not wait. Once it has served well, the next time is a first time.
    let now = seconds(100_000);
    slot.step(Event::Retry, now, 0.0);
    launched(&mut slot, now, 1);
    assert_eq!(slot.parked_for(), None);
    slot.step(Event::Ready, now, 0.0);
    slot.step(killed(), now + HEALTHY_AFTER, 0.0);
    let now = crash_loop(&mut slot);
    assert_eq!(slot.due_at(), Some(now + COOL_DOWN_MIN));
}

#[test]
fn a_drained_slot_comes_back_at_once_or_when_it_is_wanted() {
    let (mut slot, deadline) = (ready(), seconds(16));
    slot.step(drained(deadline, Then::Again), Duration::ZERO, 0.0);
    assert_eq!(slot.readiness(false), Readiness::Waiting);
    slot.step(killed(), seconds(2), 0.0);
    launched(&mut slot, seconds(2), 2);
    slot.step(Event::Ready, seconds(2), 0.0);

    slot.step(drained(deadline, Then::End), seconds(3), 0.0);
    assert_eq!(slot.readiness(false), Readiness::Out);
    // The end of the server is not taken back by an order that came before.
    slot.step(drained(deadline, Then::Again), seconds(3), 0.0);
    slot.step(killed(), seconds(4), 0.0);
    assert!(slot.is_over() && slot.due_at().is_none());
    slot.step(Event::Want, seconds(5), 0.0);
    launched(&mut slot, seconds(5), 3);
    assert_eq!(slot.restarts(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Timer,
    Ready,
    Fatal,
    Exit(Option<i32>),
    Drain(u64),
    Beat,
    Report,
    Retry,
    Again(u64),
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let step = prop_oneof![
        4 => Just(Step::Timer),
        3 => Just(Step::Ready),
        1 => Just(Step::Fatal),
        3 => prop_oneof![Just(None), Just(Some(0)), Just(Some(1)), Just(Some(70))].prop_map(Step::Exit),
        1 => (0_u64..30).prop_map(Step::Drain),
        8 => Just(Step::Beat),
        2 => Just(Step::Report),
        1 => Just(Step::Retry),
        1 => (0_u64..30).prop_map(Step::Again),
    ];
    prop::collection::vec((step, 0_u64..40_000), 1..80)
}

proptest! {
    #[test]
    fn never_two_processes_and_none_after_drain(steps in steps(), is_control in any::<bool>()) {
        let mut slot = Slot::new(if is_control { Policy::Control } else { Policy::Worker });
        let (mut now, mut alive, mut pid, mut is_draining) = (Duration::ZERO, false, 0, false);
        for (step, gap_ms) in steps {
            now += Duration::from_millis(gap_ms);
            let event = match step {
                Step::Timer => Event::Timer,
                Step::Drain(seconds) => {
                    is_draining = true;
                    drained(now + Duration::from_secs(seconds), Then::End)
                }
                Step::Again(seconds) => drained(now + Duration::from_secs(seconds), Then::Again),
                Step::Beat => Event::Beat,
                Step::Retry => Event::Retry,
                // Only a living process speaks or ends.
                _ if !alive => continue,
                Step::Ready => Event::Ready,
                Step::Report => Event::Report,
                Step::Fatal => Event::Fatal { reason: "x".into() },
                Step::Exit(code) => {
                    alive = false;
                    Event::Exited { code, how: "x".into() }
                }
            };
            match slot.step(event, now, 0.5) {
                Action::Launch => {
                    prop_assert!(!alive && !is_draining);
                    alive = true;
                    pid += 1;
                    slot.step(Event::Launched { pid }, now, 0.5);
                }
                Action::Kill | Action::Drain | Action::Abort { .. } => prop_assert!(alive),
                Action::Park { .. } => prop_assert!(!is_control && !alive && !is_draining),
                Action::End { .. } => prop_assert!(is_control && !slot.was_ever_ready()),
                Action::None => {}
            }
            prop_assert_eq!(slot.pid().is_some(), alive);
            // A slot without a process either waits for a time or is over.
            prop_assert!(alive || slot.is_over() || slot.due_at().is_some());
        }
    }
}
