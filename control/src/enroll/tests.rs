use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;

fn enroll(provided: &str, instance: &str, uuid: &str, hostname: &str) -> Enroll {
    let table = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    };
    Enroll {
        secret: Secret::new("s"),
        identifier: provided.into(),
        platform_type: "9".into(),
        details: BTreeMap::from([
            (
                "osquery_info".to_owned(),
                table(&[("instance_id", instance)]),
            ),
            (
                "system_info".to_owned(),
                table(&[("uuid", uuid), ("hostname", hostname)]),
            ),
        ]),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

#[test]
fn policies_choose_and_fall_back() {
    use HostIdentifier::{Hostname, Instance, Provided, Uuid};
    let full = enroll("p", "i", "u", "h");
    for (policy, expected) in [
        (Provided, "p"),
        (Instance, "i"),
        (Uuid, "u"),
        (Hostname, "h"),
    ] {
        assert_eq!(identifier(policy, &full).as_deref(), Some(expected));
    }
    assert_eq!(
        identifier(Uuid, &enroll("p", "i", " ", "h")).as_deref(),
        Some("p")
    );
    assert_eq!(
        identifier(Provided, &enroll("", "i", "u", "h")).as_deref(),
        Some("i")
    );
    assert_eq!(
        identifier(Provided, &enroll("", "", "u", "h")).as_deref(),
        Some("u")
    );
    assert_eq!(
        identifier(Uuid, &enroll("", "", "", "h")).as_deref(),
        Some("h")
    );
    assert_eq!(identifier(Provided, &enroll(" ", "", "", "")), None);
}

#[test]
fn secrets_compare_whole_and_empty_ones_never_match() {
    let secrets: Vec<EnrollSecret> = ["one", "two", ""]
        .into_iter()
        .map(|text| EnrollSecret {
            secret: Secret::new(text),
            created_at: UnixSeconds(1),
        })
        .collect();
    let set = SecretSet::of(&secrets);
    assert!(set.contains(&Secret::new("one")) && set.contains(&Secret::new("two")));
    for wrong in ["", "on", "one ", "three"] {
        assert!(!set.contains(&Secret::new(wrong)), "{wrong:?}");
    }
    assert!(!SecretSet::default().contains(&Secret::new("")));
}

#[test]
fn keys_are_url_safe_and_as_long_as_asked() {
    for bytes in [12_u16, 24, 256] {
        let key = new_key(bytes).unwrap();
        assert_eq!(key.reveal().len(), (usize::from(bytes) * 4).div_ceil(3));
        assert!(
            key.reveal()
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        );
        assert_ne!(new_key(bytes), new_key(bytes));
    }
}

#[test]
fn issued_keys_last_for_a_while_and_are_bounded() {
    let mut issued = IssuedKeys::default();
    let issue = |at| {
        let key = new_key(24).unwrap();
        Issued {
            hash: hash_key(&key),
            key,
            at: UnixSeconds(at),
        }
    };
    issued.put([1; 32], issue(100), UnixSeconds(100));
    for (instance_id, at, is_known) in [
        ("i", 399, true),
        ("i", 400, false),
        ("", 159, true),
        ("", 160, false),
    ] {
        let found = issued.get(&[1; 32], instance_id, UnixSeconds(at));
        assert_eq!(found.is_some(), is_known, "{instance_id:?} at {at}");
    }
    issued.put([2; 32], issue(410), UnixSeconds(410));
    assert_eq!(issued.keys.len(), 1);
    for number in 0..ISSUED_MAX + 10 {
        issued.put(
            sha256(&[&number.to_be_bytes()]),
            issue(411),
            UnixSeconds(411),
        );
    }
    assert!(issued.keys.len() <= ISSUED_MAX && issued.order.len() <= ISSUED_MAX);
}

/// Two agents with one instance id, each polling at its interval; who finds its key invalid enrolls. How often that
/// happened in the first and in the second hour.
fn enrolments_of_clones(intervals_s: [u32; 2]) -> [u32; 2] {
    let request = [1; 32];
    let mut issued = IssuedKeys::default();
    let mut grace = crate::grace::GraceKeys::default();
    let mut current = None;
    let mut held = [None; 2];
    let mut enrolments = [0; 2];
    for at in 1_000..8_200 {
        let now = UnixSeconds(at);
        grace.take_ended(now);
        for (interval_s, held) in intervals_s.iter().zip(&mut held) {
            let is_valid = |key| current == Some(key) || grace.host(&key).is_some();
            if at % interval_s != 0 || held.is_some_and(is_valid) {
                continue;
            }
            enrolments[usize::from(at >= 4_600)] += 1;
            let earlier = issued.get(&request, "i", now).map(|earlier| earlier.hash);
            *held = earlier.filter(|key| is_valid(*key)).or_else(|| {
                let key = new_key(24).unwrap();
                let hash = hash_key(&key);
                issued.put(request, Issued { key, hash, at: now }, now);
                if let Some(previous) = current.replace(hash) {
                    grace.add(previous, HostId(1), now);
                }
                Some(hash)
            });
        }
    }
    enrolments
}

#[test]
fn live_clones_of_one_instance_settle_on_one_key() {
    for intervals_s in [
        [10, 10],
        [10, 11],
        [30, 60],
        [59, 61],
        [60, 60],
        [60, 90],
        [7, 239],
        [120, 239],
    ] {
        let [first, second] = enrolments_of_clones(intervals_s);
        assert!(first >= 2, "{intervals_s:?}: {first}");
        assert_eq!(second, 0, "{intervals_s:?}");
    }
}

proptest! {
    #[test]
    fn fingerprints_tell_triples_apart(
        left in ("[a-c]{0,3}", "[a-c]{0,3}", "[a-c]{0,3}"),
        right in ("[a-c]{0,3}", "[a-c]{0,3}", "[a-c]{0,3}"),
    ) {
        let of = |triple: &(String, String, String)| fingerprint(&Secret::new(&triple.0), &triple.1, &triple.2);
        prop_assert_eq!(of(&left) == of(&right), left == right);
    }
}
