//! Laws of the slot.

use proptest::prelude::*;

use super::*;

fn killed() -> Event {
    Event::Exited {
        code: None,
        how: "signal 9".into(),
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
        slot.step(Event::Drain { deadline }, Duration::ZERO, 0.0),
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

#[derive(Clone, Debug)]
enum Step {
    Timer,
    Ready,
    Fatal,
    Exit(Option<i32>),
    Drain(u64),
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let step = prop_oneof![
        4 => Just(Step::Timer),
        3 => Just(Step::Ready),
        1 => Just(Step::Fatal),
        3 => prop_oneof![Just(None), Just(Some(0)), Just(Some(1)), Just(Some(70))].prop_map(Step::Exit),
        1 => (0_u64..30).prop_map(Step::Drain),
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
                    Event::Drain { deadline: now + Duration::from_secs(seconds) }
                }
                // Only a living process speaks or ends.
                _ if !alive => continue,
                Step::Ready => Event::Ready,
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
                Action::Kill | Action::Drain => prop_assert!(alive && is_draining),
                Action::Park { .. } => prop_assert!(!is_control && !alive),
                Action::End { .. } => prop_assert!(is_control && !slot.was_ever_ready()),
                Action::None => {}
            }
            prop_assert_eq!(slot.pid().is_some(), alive);
            // A slot without a process either waits for a time or is over.
            prop_assert!(alive || slot.is_over() || slot.due_at().is_some());
        }
    }
}
