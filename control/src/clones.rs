//! Which record an enrolment is for, when identifiers are not unique. Pure: times come from the caller.
//!
//! An agent's instance id decides (osquery makes a new one when its database is new); a machine that was cloned has the
//! identifier of its origin and, once its agent starts with a database of its own, another instance id. In this order:
//!
//! 1. The record with the same instance id.
//! 2. One without an instance id, unless it is alive and of another hardware UUID: it was enrolled by an agent that
//!    did not tell, and learns its instance id.
//! 3. A silent one, youngest first: the machine was installed anew. Among several records of the identifier only those
//!    that cannot be of another machine (hardware UUIDs are equal, or one is unknown): each record's owner comes back.
//! 4. None: a clone gets a record of its own.
//!
//! An agent that tells no instance id is told apart by hardware UUID and address. It gets, in this order, a record without
//! instance id of the same UUID and address; of the same UUID from another address (it has moved), unless the
//! record came from this address itself within its [`Known::alive_for_s`]: two agents take turns, and each gets a
//! record, [`UNNAMED_MAX`] of them at most; else as in 3 and 4. It never takes a live record that has an instance id.
//!
//! Invariant: whoever lost a record to a wrong guess gets one of its own by its next enrolment and keeps it, so no two
//! live agents take a record from each other twice.

use fleet_protocol::ids::{HostId, UnixSeconds};

use crate::model::enrollment::{Identity, is_certified_instance};

/// A host that has not told its intervals is alive for this long after it was heard of, seconds.
pub(crate) const ALIVE_UNKNOWN_S: u32 = 3600;
/// One that has told them, at least for this long, seconds.
const ALIVE_MIN_S: u32 = 300;
/// Polls that may be missed.
const ALIVE_POLLS: u32 = 2;
/// Records of one identifier that addresses alone tell apart.
const UNNAMED_MAX: usize = 8;

/// For how long a host is alive after it was heard of. `interval_s`: between its polls, 0 when unknown.
/// `seen_interval_s`: for how long marks may wait in the memory of a gateway.
pub(crate) fn alive_for_s(interval_s: u16, seen_interval_s: u32) -> u32 {
    if interval_s == 0 {
        return ALIVE_UNKNOWN_S;
    }
    let polls_s = u32::from(interval_s) * ALIVE_POLLS;
    polls_s.max(ALIVE_MIN_S).saturating_add(seen_interval_s)
}

/// A record that has the identifier.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) id: HostId,
    /// Empty: never told.
    pub(crate) instance_id: String,
    /// Hardware UUID; empty: never told.
    pub(crate) uuid: String,
    /// From where it enrolled last.
    pub(crate) address: String,
    /// From where it enrolled before that, if from elsewhere; else empty.
    pub(crate) previous_address: String,
    pub(crate) enrolled_at: UnixSeconds,
    /// Last sign of life.
    pub(crate) heard_at: UnixSeconds,
    /// See [`alive_for_s`].
    pub(crate) alive_for_s: u32,
    /// Made within the batch at hand.
    pub(crate) is_new: bool,
}

/// An enrolment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) instance_id: &'a str,
    pub(crate) uuid: &'a str,
    pub(crate) address: &'a str,
    pub(crate) at: UnixSeconds,
}

/// What a record must be like.
type Test<'a> = dyn Fn(&Known) -> bool + 'a;

impl Known {
    /// The record that an enrolment makes.
    pub(crate) fn new(id: HostId, claim: &Claim<'_>) -> Self {
        Self {
            id,
            instance_id: claim.instance_id.to_owned(),
            uuid: claim.uuid.to_owned(),
            address: claim.address.to_owned(),
            previous_address: String::new(),
            enrolled_at: claim.at,
            heard_at: claim.at,
            alive_for_s: ALIVE_UNKNOWN_S,
            is_new: true,
        }
    }

    fn is_silent(&self, at: UnixSeconds) -> bool {
        !self.is_new && self.heard_at.0.saturating_add(self.alive_for_s) < at.0
    }

    /// Whether it may be the same machine.
    fn may_be(&self, uuid: &str) -> bool {
        self.uuid.is_empty() || uuid.is_empty() || self.uuid == uuid
    }

    fn is_unnamed(&self) -> bool {
        self.instance_id.is_empty()
    }

    /// An enrolment is for this record: it says of it what the enrolment said.
    pub(crate) fn take(&mut self, claim: &Claim<'_>) {
        for (text, told) in [
            (&mut self.instance_id, claim.instance_id),
            (&mut self.uuid, claim.uuid),
        ] {
            if !told.is_empty() {
                told.clone_into(text);
            }
        }
        if self.address != claim.address {
            let previous = std::mem::replace(&mut self.address, claim.address.to_owned());
            self.previous_address = previous;
        }
        self.enrolled_at = claim.at;
        self.heard_at = claim.at;
    }
}

/// Which of the records with its identifier an enrolment is for; `None` for a new one.
pub(crate) fn choose(known: &[&Known], claim: &Claim<'_>) -> (Option<usize>, Identity) {
    // A certificate's host is only ever found by the same kind of name.
    let is_alike = |row: &Known| {
        let is_certified =
            is_certified_instance(&row.instance_id) || is_certified_instance(claim.instance_id);
        !is_certified || row.instance_id == claim.instance_id
    };
    let youngest = |matches: &Test<'_>| {
        known
            .iter()
            .enumerate()
            .filter(|(_, row)| is_alike(row) && matches(row))
            .max_by_key(|(_, row)| (row.heard_at, row.id))
            .map(|(index, _)| index)
    };
    let alike = known.iter().filter(|row| is_alike(row)).count();
    if alike == 0 {
        return (None, Identity::New);
    }
    let same = if claim.instance_id.is_empty() {
        unnamed(known, claim, &youngest)
    } else {
        let adoptable =
            |row: &Known| row.is_unnamed() && (row.is_silent(claim.at) || row.may_be(claim.uuid));
        youngest(&|row| row.instance_id == claim.instance_id).or_else(|| youngest(&adoptable))
    };
    if same.is_some() {
        return (same, Identity::Same);
    }
    let is_free = |row: &Known| row.is_silent(claim.at) && (alike == 1 || row.may_be(claim.uuid));
    match youngest(&is_free) {
        Some(silent) => (Some(silent), Identity::TakenOver),
        None => (None, Identity::Clone),
    }
}

/// The record of an agent that tells no instance id, if it has one.
fn unnamed(
    known: &[&Known],
    claim: &Claim<'_>,
    youngest: &dyn Fn(&Test<'_>) -> Option<usize>,
) -> Option<usize> {
    let candidate = |row: &Known| row.is_unnamed() && row.may_be(claim.uuid);
    let here = youngest(&|row| candidate(row) && row.address == claim.address);
    if here.is_some() {
        return here;
    }
    let takes_turns = |row: &Known| {
        row.previous_address == claim.address
            && row.enrolled_at.0.saturating_add(row.alive_for_s) >= claim.at.0
    };
    let is_full = known.iter().filter(|row| row.is_unnamed()).count() >= UNNAMED_MAX;
    youngest(&|row| candidate(row) && (is_full || !takes_turns(row)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: u32 = 1_000_000;

    /// Alive for 300 seconds after `heard_at`, enrolled then.
    fn row(id: u32, instance_id: &str, uuid: &str, address: &str, heard_at: u32) -> Known {
        Known {
            id: HostId(id),
            instance_id: instance_id.into(),
            uuid: uuid.into(),
            address: address.into(),
            previous_address: String::new(),
            enrolled_at: UnixSeconds(heard_at),
            heard_at: UnixSeconds(heard_at),
            alive_for_s: 300,
            is_new: false,
        }
    }

    fn chosen(rows: &[Known], claim: [&str; 3]) -> (Option<u32>, Identity) {
        let [instance_id, uuid, address] = claim;
        let claim = Claim {
            instance_id,
            uuid,
            address,
            at: UnixSeconds(AT),
        };
        let known: Vec<&Known> = rows.iter().collect();
        let (index, identity) = choose(&known, &claim);
        (index.map(|index| rows[index].id.0), identity)
    }

    /// What it is about, records, instance id with UUID and address, expected choice.
    type Case<'a> = (&'a str, Vec<Known>, [&'a str; 3], (Option<u32>, Identity));

    const ALIVE: u32 = AT - 300;
    const SILENT: u32 = AT - 301;
    const OLDER: u32 = AT - 9_000;

    fn check(cases: Vec<Case<'_>>) {
        for (what, rows, claim, expected) in cases {
            assert_eq!(chosen(&rows, claim), expected, "{what}");
        }
    }

    #[test]
    fn the_instance_id_decides() {
        use Identity::{Clone, New, Same};
        check(vec![
            ("unknown", vec![], ["a", "u", "1"], (None, New)),
            (
                "same instance, whatever else",
                vec![row(1, "a", "u", "1", OLDER), row(2, "b", "u", "1", ALIVE)],
                ["a", "v", "2"],
                (Some(1), Same),
            ),
            (
                "a live owner keeps its record",
                vec![row(1, "a", "u", "1", ALIVE)],
                ["b", "u", "1"],
                (None, Clone),
            ),
            (
                "a record without instance learns it",
                vec![row(1, "", "u", "1", ALIVE)],
                ["a", "u", "2"],
                (Some(1), Same),
            ),
            (
                "not from another live machine",
                vec![row(1, "", "u", "1", ALIVE)],
                ["a", "v", "1"],
                (None, Clone),
            ),
            (
                "a certificate's record is no agent's",
                vec![row(1, " client certificate, x", "u", "1", OLDER)],
                ["a", "u", "1"],
                (None, New),
            ),
        ]);
    }

    #[test]
    fn silent_records_are_taken_over_by_the_same_machine() {
        use Identity::{Clone, TakenOver};
        check(vec![
            (
                "a silent owner was installed anew",
                vec![row(1, "a", "u", "1", SILENT)],
                ["b", "u", "1"],
                (Some(1), TakenOver),
            ),
            (
                "also by another machine of the same name",
                vec![row(1, "a", "u", "1", SILENT)],
                ["b", "v", "1"],
                (Some(1), TakenOver),
            ),
            (
                "but not where several machines share the name",
                vec![row(1, "a", "u", "1", SILENT), row(2, "b", "v", "1", ALIVE)],
                ["c", "w", "1"],
                (None, Clone),
            ),
            (
                "of several silent ones that of the same machine",
                vec![row(1, "a", "u", "1", OLDER), row(2, "b", "v", "1", SILENT)],
                ["c", "u", "1"],
                (Some(1), TakenOver),
            ),
            (
                "the youngest silent one where nothing tells",
                vec![row(1, "a", "", "1", OLDER), row(2, "b", "", "1", SILENT)],
                ["c", "u", "1"],
                (Some(2), TakenOver),
            ),
        ]);
    }

    #[test]
    fn agents_without_instance_id_are_told_apart_by_machine_and_place() {
        use Identity::{Clone, Same, TakenOver};
        check(vec![
            (
                "no instance: a live record with one is not taken",
                vec![row(1, "a", "u", "1", ALIVE)],
                ["", "u", "1"],
                (None, Clone),
            ),
            (
                "no instance: a silent one is",
                vec![row(1, "a", "u", "1", SILENT)],
                ["", "u", "1"],
                (Some(1), TakenOver),
            ),
            (
                "no instance: same place before a younger one",
                vec![row(1, "", "u", "1", OLDER), row(2, "", "u", "2", ALIVE)],
                ["", "u", "1"],
                (Some(1), Same),
            ),
            (
                "no instance: it moved",
                vec![row(1, "", "u", "1", ALIVE)],
                ["", "u", "2"],
                (Some(1), Same),
            ),
            (
                "no instance: another live machine",
                vec![row(1, "", "u", "1", ALIVE)],
                ["", "v", "1"],
                (None, Clone),
            ),
        ]);
    }

    #[test]
    fn agents_that_take_turns_from_two_addresses_get_a_record_each() {
        let mut moved = row(1, "", "u", "2", AT - 10);
        moved.previous_address = "1".into();
        assert_eq!(
            chosen(&[moved.clone()], ["", "u", "1"]),
            (None, Identity::Clone)
        );
        // Back after a day is a laptop.
        let mut home = moved.clone();
        home.enrolled_at = UnixSeconds(AT - 86_400);
        assert_eq!(chosen(&[home], ["", "u", "1"]), (Some(1), Identity::Same));
        // An address that changes all the time does not fill the store.
        let mut many = vec![moved.clone(); UNNAMED_MAX];
        many[0].heard_at = UnixSeconds(AT);
        assert_eq!(chosen(&many, ["", "u", "1"]).1, Identity::Same);
    }

    #[test]
    fn life_follows_the_interval() {
        assert_eq!(alive_for_s(0, 30), ALIVE_UNKNOWN_S);
        assert_eq!(alive_for_s(10, 30), 330);
        assert_eq!(alive_for_s(600, 30), 1_230);
    }

    /// Applies a choice as the store does.
    fn enroll(rows: &mut Vec<Known>, claim: &Claim<'_>) -> usize {
        let known: Vec<&Known> = rows.iter().collect();
        let (found, _) = choose(&known, claim);
        let index = found.unwrap_or_else(|| {
            let id = u32::try_from(rows.len()).unwrap() + 1;
            rows.push(Known::new(HostId(id), claim));
            rows.len() - 1
        });
        rows[index].take(claim);
        index
    }

    proptest! {
        #[test]
        fn live_agents_settle_whatever_they_tell(
            agents in prop::collection::vec(("[ab]?", "[uv]?", "[12]"), 1..5),
            turns in prop::collection::vec(0_usize..5, 0..20),
        ) {
            // Two that tell exactly the same are the same to anybody.
            let mut agents = agents;
            agents.sort();
            agents.dedup();
            let mut rows = Vec::new();
            let mut at = AT;
            let mut owner = std::collections::HashMap::new();
            let rounds = turns.iter().map(|turn| turn % agents.len());
            // Whoever lost its record enrolls again, until nobody does.
            for agent in rounds.chain((0..40 * agents.len()).map(|turn| turn % agents.len())) {
                if owner.values().any(|other| *other == agent) {
                    continue;
                }
                at += 1;
                let (instance_id, uuid, address) = &agents[agent];
                let claim = Claim { instance_id, uuid, address, at: UnixSeconds(at) };
                let index = enroll(&mut rows, &claim);
                owner.insert(index, agent);
                for row in &mut rows {
                    row.heard_at = UnixSeconds(at);
                    row.is_new = false;
                }
            }
            let by_instance = agents.iter().filter(|agent| !agent.0.is_empty());
            let instances: std::collections::BTreeSet<_> = by_instance.map(|agent| &agent.0).collect();
            let named = owner.values().filter(|agent| !agents[**agent].0.is_empty()).count();
            prop_assert_eq!(named, instances.len());
        }
    }
}
