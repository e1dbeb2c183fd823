//! Enrolment: secrets, identifiers, node keys. A batch of requests is one call of the store.
//!
//! Owner of the cached secrets and of the keys issued lately. Invariants: only a key's hash leaves this module for the
//! store; the same secret, identifier and instance within [`REPEAT_S`] get the same key, because an agent's threads
//! enroll one after the other and each would cancel the other's key; a wrong secret costs the store nothing.

use std::collections::{HashMap, VecDeque};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fleet_protocol::agent::{Answer, Enroll};
use fleet_protocol::config::HostIdentifier;
use fleet_protocol::ids::{HostId, NodeKeyHash, RequestId, UnixSeconds};
use fleet_protocol::reject::Reject;
use fleet_protocol::secret::Secret;

use crate::agents::{Agents, lock};
use crate::details::Facts;
use crate::model::enrollment::{EnrollSecret, Identity, NewEnrollment};
use crate::store;
use crate::work::after;

/// How long an enrolment that is repeated gets the same key. Two live agents with one instance id (a copied database)
/// share a record: the one whose key was replaced learns that at its first poll after [`GRACE_S`](crate::grace::GRACE_S),
/// and must then be given the other's key, or they would take the record from each other for ever. So this is longer than
/// the grace by the interval of all but the slowest agents.
const REPEAT_S: u32 = 300;
/// The same for agents that tell no instance id: others may look the same, so this is no longer than threads of one
/// agent need.
const REPEAT_UNNAMED_S: u32 = 60;
/// Issued keys that are remembered, at most about 50 MiB; the oldest give way. As many as keys in grace, so that a storm
/// does not turn the order of the two around.
const ISSUED_MAX: usize = 262_144;
/// Characters of an identifier or instance id.
const IDENTIFIER_CHARS_MAX: usize = 255;

/// The enroll secrets, as hashes of equal length.
#[derive(Debug, Default)]
pub(crate) struct SecretSet {
    hashes: Vec<[u8; 32]>,
}

impl SecretSet {
    /// From the store's list.
    pub(crate) fn of(secrets: &[EnrollSecret]) -> Self {
        let hashes = secrets
            .iter()
            .map(|secret| secret.secret.reveal())
            .filter(|secret| !secret.is_empty())
            .map(|secret| sha256(&[secret.as_bytes()]))
            .collect();
        Self { hashes }
    }

    /// Takes the same time whichever secret it is, and whether it is one or not.
    pub(crate) fn contains(&self, secret: &Secret) -> bool {
        let given = sha256(&[secret.reveal().as_bytes()]);
        self.hashes.iter().fold(false, |found, hash| {
            found | verify_slices_are_equal(hash, &given).is_ok()
        })
    }
}

/// A key that was given out.
#[derive(Clone, Debug)]
struct Issued {
    key: Secret,
    hash: NodeKeyHash,
    at: UnixSeconds,
}

/// Keys that were given out lately, by what asked for them.
#[derive(Debug, Default)]
pub(crate) struct IssuedKeys {
    keys: HashMap<[u8; 32], Issued>,
    order: VecDeque<(UnixSeconds, [u8; 32])>,
}

impl IssuedKeys {
    fn get(&self, request: &[u8; 32], instance_id: &str, now: UnixSeconds) -> Option<&Issued> {
        let repeat_s = if instance_id.is_empty() {
            REPEAT_UNNAMED_S
        } else {
            REPEAT_S
        };
        self.keys
            .get(request)
            .filter(|issued| after(issued.at, repeat_s) > now)
    }

    fn put(&mut self, request: [u8; 32], issued: Issued, now: UnixSeconds) {
        while let Some((at, oldest)) = self.order.front().copied() {
            if after(at, REPEAT_S) > now && self.order.len() < ISSUED_MAX {
                break;
            }
            self.order.pop_front();
            if self.keys.get(&oldest).is_some_and(|issued| issued.at == at) {
                self.keys.remove(&oldest);
            }
        }
        self.order.push_back((issued.at, request));
        self.keys.insert(request, issued);
    }
}

/// What names the host, by policy; falls back to what the agent sent, then to whatever else tells it apart. `None`
/// when nothing does.
pub(crate) fn identifier(policy: HostIdentifier, enroll: &Enroll) -> Option<String> {
    let instance = enroll.detail("osquery_info", "instance_id");
    let uuid = enroll.detail("system_info", "uuid");
    let hostname = enroll.detail("system_info", "hostname");
    let provided = enroll.identifier.as_str();
    let wanted = match policy {
        HostIdentifier::Provided => provided,
        HostIdentifier::Instance => instance,
        HostIdentifier::Uuid => uuid,
        HostIdentifier::Hostname => hostname,
    };
    [wanted, provided, instance, uuid, hostname]
        .into_iter()
        .map(str::trim)
        .find(|text| !text.is_empty())
        .map(|text| text.chars().take(IDENTIFIER_CHARS_MAX).collect())
}

/// A node key: random bytes as URL-safe ASCII, since agents put it into a header.
fn new_key(bytes: u16) -> Option<Secret> {
    let mut random = vec![0; usize::from(bytes)];
    rand::fill(&mut random).ok()?;
    Some(Secret::new(URL_SAFE_NO_PAD.encode(random)))
}

/// What the store and the workers know of a key.
pub(crate) fn hash_key(key: &Secret) -> NodeKeyHash {
    NodeKeyHash(sha256(&[key.reveal().as_bytes()]))
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// One request that the store must see.
struct Candidate {
    request: [u8; 32],
    new: NewEnrollment,
    issued: Issued,
    has_name: bool,
}

/// How a request is answered.
enum Verdict {
    Done(Answer),
    /// As the candidate of this number.
    Stored(usize),
}

impl Agents {
    /// Answers a batch of enrolments.
    pub(crate) async fn enroll_batch(
        &self,
        requests: Vec<(RequestId, Enroll)>,
        now: UnixSeconds,
    ) -> Vec<(RequestId, Answer)> {
        // One batch at a time, so that the same agent's requests over two links cannot both be new.
        let mut issued = self.enrolling.lock().await;
        let (verdicts, candidates) = self.judge(&issued, requests, now);
        let outcome = self.store_candidates(&mut issued, candidates, now).await;
        drop(issued);
        let answers: Vec<(RequestId, Answer)> = verdicts
            .into_iter()
            .map(|(id, verdict)| match verdict {
                Verdict::Done(answer) => (id, answer),
                Verdict::Stored(index) => match &outcome {
                    Ok(answers) => (
                        id,
                        answers
                            .get(index)
                            .cloned()
                            .unwrap_or(Answer::Refused(Reject::Internal)),
                    ),
                    Err(reject) => (id, Answer::Refused(*reject)),
                },
            })
            .collect();
        for (_, answer) in &answers {
            self.counters.count_enrollment(answer);
        }
        answers
    }

    /// Everything but the store: refusals, repetitions, and what is left to store.
    fn judge(
        &self,
        issued: &IssuedKeys,
        requests: Vec<(RequestId, Enroll)>,
        now: UnixSeconds,
    ) -> (Vec<(RequestId, Verdict)>, Vec<Candidate>) {
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut by_request: HashMap<[u8; 32], usize> = HashMap::new();
        let verdicts = requests
            .into_iter()
            .map(|(id, enroll)| {
                if !lock(&self.secrets).contains(&enroll.secret) {
                    let refused = Answer::Refused(Reject::EnrollSecretInvalid);
                    return (id, Verdict::Done(refused));
                }
                let Some(identifier) = identifier(self.options.host_identifier, &enroll) else {
                    return (id, Verdict::Done(Answer::Refused(Reject::BodyMalformed)));
                };
                let instance_id = enroll.detail("osquery_info", "instance_id").trim();
                let request = fingerprint(&enroll.secret, &identifier, instance_id);
                if let Some(index) = by_request.get(&request) {
                    return (id, Verdict::Stored(*index));
                }
                let earlier = issued.get(&request, instance_id, now);
                // The key may have been stored and then lost with its host.
                if let Some(earlier) = earlier
                    && let Some(host) = lock(&self.roster).find_key(&earlier.hash)
                {
                    let node_key = earlier.key.clone();
                    return (id, Verdict::Done(Answer::Enrolled { node_key, host }));
                }
                let Some(key) = new_key(self.options.node_key_size) else {
                    return (id, Verdict::Done(Answer::Refused(Reject::Internal)));
                };
                by_request.insert(request, candidates.len());
                candidates.push(candidate(request, key, identifier, &enroll, now));
                (id, Verdict::Stored(candidates.len() - 1))
            })
            .collect();
        (verdicts, candidates)
    }

    async fn store_candidates(
        &self,
        issued: &mut IssuedKeys,
        candidates: Vec<Candidate>,
        now: UnixSeconds,
    ) -> Result<Vec<Answer>, Reject> {
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let batch: Vec<NewEnrollment> = candidates
            .iter()
            .map(|candidate| candidate.new.clone())
            .collect();
        let outcomes = self
            .store
            .enroll(&batch, &|host| self.seen_at(host))
            .await
            .map_err(|error| self.store_failed("enroll", &error))?;
        if outcomes.len() != candidates.len() {
            tracing::error!("the store answered another number of enrolments than it was given");
            return Err(Reject::Internal);
        }
        let mut roster = lock(&self.roster);
        for (outcome, candidate) in outcomes.iter().zip(&candidates) {
            let id = outcome.host.id;
            roster.apply_host(&outcome.host, now);
            roster.mark_seen(id, now);
            if candidate.has_name {
                roster.set_named(id);
            }
            if let Some(previous) = outcome.previous_key {
                roster.add_grace(previous, id, now);
            }
            lock(&self.own_writes).insert(id);
        }
        roster.publish(None);
        let answers = outcomes
            .iter()
            .zip(candidates)
            .map(|(outcome, candidate)| {
                self.tell_identity(outcome.identity, &candidate.new.identifier, outcome.host.id);
                let node_key = candidate.issued.key.clone();
                issued.put(candidate.request, candidate.issued, now);
                match roster.find_key(&outcome.host.key) {
                    Some(host) => Answer::Enrolled { node_key, host },
                    None => Answer::Refused(Reject::Internal),
                }
            })
            .collect();
        Ok(answers)
    }

    fn tell_identity(&self, identity: Identity, identifier: &str, host: HostId) {
        self.counters.count_identity(identity);
        match identity {
            Identity::New | Identity::Same => {}
            Identity::TakenOver => {
                tracing::info!(%host, identifier, "host enrolled with a new osquery database");
            }
            Identity::Clone => {
                if lock(&self.warned).may_warn(&format!("clone {identifier}"), crate::agents::now())
                {
                    tracing::warn!(
                        %host,
                        identifier,
                        "two live hosts use the same identifier; each has a record of its own \
                         (osquery.host_identifier=instance tells clones apart)"
                    );
                }
            }
        }
    }

    /// The refusal for a failed call of the store.
    pub(crate) fn store_failed(&self, what: &'static str, error: &store::Error) -> Reject {
        self.counters.count_store_failure();
        match error {
            store::Error::Unavailable(_)
            | store::Error::Denied(_)
            | store::Error::NotPrepared { .. } => {
                if lock(&self.warned).may_warn(what, crate::agents::now()) {
                    tracing::warn!(%error, "{what}: the store is away");
                }
                Reject::StoreUnavailable
            }
            store::Error::Invalid(_) | store::Error::Failed(_) => {
                tracing::error!(%error, "{what} failed");
                Reject::Internal
            }
        }
    }
}

fn candidate(
    request: [u8; 32],
    key: Secret,
    identifier: String,
    enroll: &Enroll,
    now: UnixSeconds,
) -> Candidate {
    let facts = Facts::of_enrollment(enroll);
    let instance_id = enroll.detail("osquery_info", "instance_id").trim();
    let hash = hash_key(&key);
    Candidate {
        request,
        has_name: facts.columns.hostname.is_some(),
        new: NewEnrollment {
            key: hash,
            identifier,
            instance_id: instance_id.chars().take(IDENTIFIER_CHARS_MAX).collect(),
            address: enroll.address,
            at: now,
            columns: facts.columns,
            details: facts.details,
        },
        issued: Issued { key, hash, at: now },
    }
}

fn fingerprint(secret: &Secret, identifier: &str, instance_id: &str) -> [u8; 32] {
    // Hashes of equal length, so that no two triples look the same when joined.
    let parts = [secret.reveal(), identifier, instance_id].map(|part| sha256(&[part.as_bytes()]));
    let [secret, identifier, instance_id] = &parts;
    sha256(&[secret, identifier, instance_id])
}

#[cfg(test)]
mod tests;
