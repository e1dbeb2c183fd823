use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(100);

fn handover() -> Handover {
    Handover::new([64, 3], [0, 1], Duration::from_secs(1), NOW)
}

fn prepared() -> FromNew {
    FromNew::Prepared(Prepared {
        version_min: 2,
        version_max: 3,
        build: "2.0.0".into(),
        state_dir: "/state".into(),
    })
}

/// What the new side says in a good upgrade, and the end of our control.
fn good() -> Vec<Event> {
    vec![
        Event::Said(prepared()),
        Event::Said(FromNew::Took { count: 64 }),
        Event::Said(FromNew::Took { count: 3 }),
        Event::Said(FromNew::Holds { count: 67 }),
        Event::ControlEnded,
        Event::Said(FromNew::ControlStarted { pid: 7 }),
        Event::Said(FromNew::ControlReady),
        Event::Said(FromNew::SlotReady { slot: 0 }),
        Event::Said(FromNew::SlotReady { slot: 1 }),
        Event::Said(FromNew::Serves),
    ]
}

/// Actions without the lines for people.
fn play(handover: &mut Handover, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
    let mut actions = Vec::new();
    for event in events {
        actions.extend(handover.step(event, NOW));
    }
    actions.retain(|action| !matches!(action, Action::Report(_) | Action::Check(_)));
    actions
}

#[test]
fn each_step_waits_for_the_one_before() {
    let mut handover = handover();
    let actions = play(&mut handover, good());
    assert_eq!(
        actions,
        [
            Action::Hand,
            Action::Hand,
            Action::SendEstate,
            Action::EndControl,
            Action::StartControl,
            Action::StartSlot(0),
            Action::Rest(0),
            Action::StartSlot(1),
            Action::Rest(1),
            Action::Commit,
            Action::Finish,
        ]
    );
    assert_eq!(handover.due_at(), None);
    // Whatever becomes of the new side now, this upgrade is over.
    let how = "ended".to_owned();
    assert_eq!(handover.step(Event::Gone { how }, NOW), []);
}

#[test]
fn before_our_control_is_touched_nothing_has_to_be_taken_back() {
    for done in 0..good().len() {
        let mut handover = handover();
        play(&mut handover, good().into_iter().take(done));
        assert_eq!(handover.is_control_given(), done >= 4, "{done}");
        assert_eq!(handover.is_emptying(), done == 4, "{done}");
        let how = "ended (exit status: 1)".to_owned();
        let actions = handover.step(Event::Gone { how }, NOW);
        let [Action::TakeBack { reason, code }] = &actions[..] else {
            panic!("{done}: {actions:?}");
        };
        assert_eq!(*code, exit::FATAL);
        assert!(reason.contains("ended (exit status: 1)"), "{reason}");
        assert_eq!(handover.control_pid(), (done >= 6).then_some(7));
    }
}

#[test]
fn each_step_has_a_deadline() {
    for done in 0..good().len() {
        let mut handover = handover();
        play(&mut handover, good().into_iter().take(done));
        let due = handover.due_at().unwrap();
        let before = due - Duration::from_millis(1);
        assert_eq!(handover.step(Event::Timer, before), []);
        let actions = handover.step(Event::Timer, due);
        assert!(
            matches!(&actions[..], [Action::TakeBack { reason, .. }] if reason.contains("in time")),
            "{done}: {actions:?}"
        );
    }
}

#[test]
fn a_refusal_keeps_its_words_and_its_code() {
    let mut handover = handover();
    let (reason, code) = ("server.address: nonsense".to_owned(), exit::CONFIG);
    let actions = handover.step(Event::Said(FromNew::Refused { reason, code }), NOW);
    let [Action::TakeBack { reason, code }] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*code, exit::CONFIG);
    assert!(reason.contains("server.address: nonsense"), "{reason}");
}

#[test]
fn agents_wait_for_control_no_longer_than_they_can() {
    let most = EMPTY_LIMIT + CONTROL_LIMIT;
    assert!(most < fleet_protocol::limits::EXCHANGE_DEADLINE);
    // One that has always been slow gets its time, in bounds.
    let slow = Duration::from_secs(10);
    for (own, limit) in [
        (Duration::ZERO, CONTROL_LIMIT),
        (slow, slow * CONTROL_TIMES),
        (Duration::MAX, CONTROL_LIMIT_MAX),
    ] {
        let mut handover = Handover::new([1], [], own, NOW);
        play(
            &mut handover,
            [
                Event::Said(prepared()),
                Event::Said(FromNew::Took { count: 1 }),
                Event::Said(FromNew::Holds { count: 1 }),
                Event::ControlEnded,
            ],
        );
        assert_eq!(handover.due_at(), Some(NOW + limit));
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Said(prepared())),
        prop_oneof![Just(64), Just(3), 0..70_u32]
            .prop_map(|count| Event::Said(FromNew::Took { count })),
        prop_oneof![Just(67), 0..70_u32].prop_map(|count| Event::Said(FromNew::Holds { count })),
        Just(Event::Said(FromNew::ControlStarted { pid: 7 })),
        Just(Event::Said(FromNew::ControlReady)),
        (0..3_u16).prop_map(|slot| Event::Said(FromNew::SlotReady { slot })),
        Just(Event::Said(FromNew::Serves)),
        Just(Event::ControlEnded),
        Just(Event::Timer),
        Just(Event::Cancel {
            reason: "stop".into()
        }),
        Just(Event::Gone {
            how: "ended".into()
        }),
    ]
}

proptest! {
    #[test]
    fn it_ends_once_and_control_is_never_with_both(
        lead in 0..10_usize,
        events in prop::collection::vec((any_event(), 0..40_u64), 0..40),
    ) {
        let mut handover = handover();
        let mut now = NOW;
        let mut ends = 0;
        let mut has_ended = false;
        let given = good().into_iter().take(lead).map(|event| (event, 0));
        for (event, seconds) in given.chain(events) {
            now += Duration::from_secs(seconds);
            has_ended |= event == Event::ControlEnded && handover.is_emptying();
            for action in handover.step(event, now) {
                prop_assert_eq!(ends, 0, "an action after the end");
                match action {
                    Action::StartControl => prop_assert!(has_ended),
                    Action::Finish | Action::TakeBack { .. } => ends += 1,
                    _ => {}
                }
            }
            prop_assert_eq!(ends == 1, handover.due_at().is_none());
        }
    }
}
