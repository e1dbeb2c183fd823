use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn size(hosts: u64, cores: u64, memory_gib: u64) -> Size {
    Size {
        hosts,
        cores,
        memory_bytes: memory_gib << 30,
        page_bytes: 4096,
        connections: hosts,
        listeners: cores,
    }
}

fn wanted(key: &str, size: &Size) -> Vec<u64> {
    (find(key).unwrap().wanted)(size)
}

#[test]
fn descriptors_are_those_of_the_note_and_stay_below_the_kernels_bound() {
    let small = size(1000, 2, 4);
    assert_eq!(wanted(NOFILE, &small), [1_024_000, 1_024_000]);
    assert_eq!(wanted(NR_OPEN, &small), [1_048_576]);
    let large = size(4_000_000, 4, 256);
    assert_eq!(wanted(NOFILE, &large), [2_000_000, 2_000_000]);
    assert_eq!(wanted(NR_OPEN, &large), [2_097_152]);
}

#[test]
fn queues_follow_the_hosts_of_a_worker() {
    assert_eq!(wanted(SOMAXCONN, &size(1000, 2, 4)), [4096]);
    assert_eq!(wanted(SOMAXCONN, &size(30_000, 2, 4)), [16_384]);
    assert_eq!(wanted(SOMAXCONN, &size(10_000_000, 16, 64)), [65_535]);
}

#[test]
fn memory_bounds_what_sockets_may_fill() {
    assert_eq!(
        wanted(TCP_MEM, &size(300_000, 16, 64)),
        [300_000, 450_000, 600_000]
    );
    // Half of 1 GiB.
    assert_eq!(
        wanted(TCP_MEM, &size(1_000_000, 2, 1)),
        [65_536, 98_304, 131_072]
    );
}

#[test]
fn the_table_is_complete_and_names_each_setting_once() {
    let mut keys = BTreeSet::new();
    for setting in SETTINGS {
        assert!(keys.insert(setting.key), "{} comes twice", setting.key);
        for text in [setting.why, setting.cost] {
            assert!(text.ends_with('.'), "{}: {text}", setting.key);
        }
        assert!(!setting.how.is_empty() && !setting.source.is_empty());
        // The whole row must fit into memory of people, too.
        assert!(
            setting.why.len() <= 200,
            "{}: {}",
            setting.key,
            setting.why.len()
        );
    }
    assert!(keys.len() >= 20);
}

proptest! {
    #[test]
    fn any_size_gives_sane_values(
        hosts in 0..=u64::from(u32::MAX), cores in 0..4096_u64, memory in any::<u64>(), page in 0..(1_u64 << 20),
        connections in 0..=u64::from(u32::MAX), listeners in 0..10_000_000_u64,
    ) {
        let size = Size { hosts, cores, memory_bytes: memory, page_bytes: page, connections, listeners };
        for setting in SETTINGS {
            let values = (setting.wanted)(&size);
            if matches!(setting.rule, Rule::Avoid(..)) {
                prop_assert!(values.is_empty());
                continue;
            }
            prop_assert!((1..=3).contains(&values.len()));
            prop_assert!(values.is_sorted(), "{}: {values:?}", setting.key);
        }
        prop_assert!(wanted(NR_OPEN, &size)[0] > wanted(NOFILE, &size)[1]);
        prop_assert!(wanted("fs.file-max", &size)[0] > wanted(NOFILE, &size)[1]);
    }

    #[test]
    fn more_hosts_never_want_less(few in 0..2_000_000_u64, more in 0..2_000_000_u64) {
        let (few, more) = (few.min(more), few.max(more));
        for setting in SETTINGS {
            let (low, high) = ((setting.wanted)(&size(few, 4, 16)), (setting.wanted)(&size(more, 4, 16)));
            prop_assert!(low.iter().zip(&high).all(|(low, high)| low <= high), "{}", setting.key);
        }
    }
}
