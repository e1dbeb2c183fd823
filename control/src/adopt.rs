//! Hosts that are known by a client certificate instead of a node key. The worker has verified it; here its host is found
//! or made.

use std::collections::BTreeMap;

use fleet_protocol::agent::{Adopt, Answer};
use fleet_protocol::ids::{NodeKeyHash, RequestId, UnixSeconds};
use fleet_protocol::reject::Reject;

use crate::agents::{Agents, lock};
use crate::model::enrollment::{NewEnrollment, certified_instance};
use crate::model::host::HostColumns;

impl Agents {
    /// Answers a batch of such requests, each with its host.
    pub(crate) async fn adopt_batch(
        &self,
        requests: Vec<(RequestId, Adopt)>,
        now: UnixSeconds,
    ) -> Vec<(RequestId, Answer)> {
        if requests.is_empty() {
            return Vec::new();
        }
        // One batch at a time, as with enrolments.
        let issued = self.enrolling.lock().await;
        let keys = requests.iter().map(|(id, adopt)| (*id, adopt.key));
        let mut answers = self.lookup_batch(keys.collect(), now).await;
        let unknown: BTreeMap<NodeKeyHash, &Adopt> = requests
            .iter()
            .zip(&answers)
            .filter(|(_, (_, answer))| matches!(answer, Answer::Host(None)))
            .map(|((_, adopt), _)| (adopt.key, adopt))
            .collect();
        if !unknown.is_empty() {
            let stored = self.store_adopted(unknown.into_values(), now).await;
            for ((_, answer), (_, adopt)) in answers.iter_mut().zip(&requests) {
                if matches!(answer, Answer::Host(None)) {
                    let found = lock(&self.roster).find_key(&adopt.key);
                    *answer = match (stored, found) {
                        (Ok(()), Some(host)) => Answer::Host(Some(host)),
                        (Ok(()), None) => Answer::Refused(Reject::Internal),
                        (Err(reject), _) => Answer::Refused(reject),
                    };
                }
            }
        }
        drop(issued);
        answers
    }

    async fn store_adopted<'a>(
        &self,
        unknown: impl Iterator<Item = &'a Adopt>,
        now: UnixSeconds,
    ) -> Result<(), Reject> {
        let batch: Vec<NewEnrollment> = unknown
            .map(|adopt| NewEnrollment {
                key: adopt.key,
                identifier: adopt.identity.clone(),
                instance_id: certified_instance(adopt.kind),
                address: adopt.address,
                at: now,
                // Shown until the host itself tells its name.
                columns: HostColumns {
                    hostname: Some(adopt.identity.clone()),
                    ..HostColumns::default()
                },
                details: serde_json::Map::default(),
            })
            .collect();
        let outcomes = self
            .store
            .enroll(&batch, &|host| self.seen_at(host))
            .await
            .map_err(|error| self.store_failed("adopt hosts by certificate", &error))?;
        let mut roster = lock(&self.roster);
        for (outcome, new) in outcomes.iter().zip(&batch) {
            let id = outcome.host.id;
            roster.apply_host(&outcome.host, now);
            roster.mark_seen(id, now);
            lock(&self.own_writes).insert(id);
            self.counters.count_identity(outcome.identity);
            tracing::info!(host = %id, identity = new.identifier, "host known by its certificate");
        }
        roster.publish(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use fleet_protocol::agent::{IdentityKind, Request};
    use fleet_protocol::ids::HostId;

    use super::*;
    use crate::agent_bench::Bench;
    use crate::agents::now;

    fn adopt(identity: &str, key: u8) -> Request {
        adopt_by(IdentityKind::DnsName, identity, key)
    }

    fn adopt_by(kind: IdentityKind, identity: &str, key: u8) -> Request {
        Request::Adopt(Box::new(Adopt {
            key: NodeKeyHash([key; 32]),
            identity: identity.into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            kind,
        }))
    }

    async fn host(bench: &Bench, request: Request, at: UnixSeconds) -> HostId {
        match bench.one(request, at).await {
            Answer::Host(Some(host)) => host.id,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_certificate_is_one_host_whatever_happens() {
        let bench = Bench::new().await;
        let start = now();
        let first = host(&bench, adopt("web-1", 1), start).await;
        assert_eq!(host(&bench, adopt("web-1", 1), start).await, first);
        assert_ne!(host(&bench, adopt("web-2", 2), start).await, first);
        // Another process of the cluster knows it from the store.
        let others = Bench::agents(&bench.store, &bench.config).await;
        let answers = others
            .run_at(
                fleet_protocol::link::BatchKind::Enroll,
                vec![
                    (RequestId(1), adopt("web-1", 1)),
                    (RequestId(2), adopt("web-3", 3)),
                    (RequestId(3), adopt("web-3", 3)),
                ],
                start,
            )
            .await;
        let ids: Vec<_> = answers
            .iter()
            .map(|(_, answer)| match answer {
                Answer::Host(Some(host)) => host.id,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids[0], first);
        assert_eq!(ids[1], ids[2]);
        assert_eq!(bench.store.host_count().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn the_same_text_in_another_part_is_another_host() {
        let bench = Bench::new().await;
        let start = now();
        let mut hosts = Vec::new();
        for (kind, key) in IdentityKind::ALL.into_iter().zip(1..) {
            // Those before have long been silent, which lets agents that enroll take rows over.
            let later = UnixSeconds(start.0 + 1_000_000 * u32::from(key));
            hosts.push(host(&bench, adopt_by(kind, "web-1", key), later).await);
        }
        let end = UnixSeconds(start.0 + 10_000_000);
        for (kind, key) in IdentityKind::ALL.into_iter().zip(1..) {
            let again = host(&bench, adopt_by(kind, "web-1", key), end).await;
            assert_eq!(again, hosts[usize::from(key) - 1]);
        }
        hosts.sort();
        hosts.dedup();
        assert_eq!(hosts.len(), IdentityKind::ALL.len());
    }

    #[tokio::test]
    async fn an_enrolment_never_takes_a_certificates_host() {
        let bench = Bench::new().await;
        let start = now();
        let certified = host(&bench, adopt("web-1", 1), start).await;
        // Long silent, and claimed by a host that names itself so, even with the same instance id.
        let later = UnixSeconds(start.0 + 1_000_000);
        let mut claim = crate::agent_bench::enroll("s3cret", "web-1");
        let info = claim.details.get_mut("osquery_info").unwrap();
        info.insert(
            "instance_id".into(),
            certified_instance(IdentityKind::DnsName),
        );
        let answer = bench.one(Request::Enroll(Box::new(claim)), later).await;
        let Answer::Enrolled { host: other, .. } = answer else {
            panic!("{answer:?}");
        };
        assert_ne!(other.id, certified);
        let (_, third) = bench.enroll("web-1", later).await;
        assert_ne!(third, certified);
        assert_eq!(host(&bench, adopt("web-1", 1), later).await, certified);
        // Nor the other way round.
        let (_, enrolled) = bench.enroll("db-1", later).await;
        assert_ne!(host(&bench, adopt("db-1", 4), later).await, enrolled);
    }
}
