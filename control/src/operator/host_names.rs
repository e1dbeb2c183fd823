//! Names of the hosts in results: looked up many at once, and kept for a while.
//!
//! Owns the cache, which forgets in two generations, so that its size is bounded without a list of ages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fleet_protocol::ids::HostId;

use crate::agents::lock;
use crate::model::host_name::HostName;
use crate::store::Store;

/// Hosts of one generation; there are two.
const GENERATION_MAX: usize = 32_768;
/// A name is looked up again after this time.
const AGE_MAX: Duration = Duration::from_secs(300);

type Known = HashMap<HostId, (Arc<HostName>, Instant)>;

/// See the module. Pure.
#[derive(Debug, Default)]
struct Cache {
    young: Known,
    old: Known,
}

impl Cache {
    fn get(&self, host: HostId, now: Instant) -> Option<Arc<HostName>> {
        let found = self.young.get(&host).or_else(|| self.old.get(&host));
        let (name, at) = found?;
        (now.saturating_duration_since(*at) < AGE_MAX).then(|| Arc::clone(name))
    }

    fn put(&mut self, host: HostId, name: Arc<HostName>, now: Instant) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(host, (name, now));
    }
}

/// See the module.
pub(super) struct HostNames {
    store: Arc<Store>,
    cache: Mutex<Cache>,
}

impl HostNames {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            cache: Mutex::default(),
        }
    }

    /// The names in the order of the hosts. A store that does not answer costs names, not results.
    pub(super) async fn of(&self, hosts: &[HostId]) -> Vec<Arc<HostName>> {
        let now = Instant::now();
        let mut missing = Vec::new();
        let mut found: HashMap<HostId, Arc<HostName>> = HashMap::with_capacity(hosts.len());
        {
            let cache = lock(&self.cache);
            for host in hosts {
                match cache.get(*host, now) {
                    Some(name) => drop(found.insert(*host, name)),
                    None => missing.push(*host),
                }
            }
        }
        if !missing.is_empty() {
            missing.sort_unstable();
            missing.dedup();
            match self.store.host_names(&missing).await {
                Ok(names) => {
                    let mut cache = lock(&self.cache);
                    for (host, name) in names {
                        let name = Arc::new(name);
                        cache.put(host, Arc::clone(&name), now);
                        found.insert(host, name);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, hosts = missing.len(), "results are shown without names of hosts");
                }
            }
        }
        let name_of = |host: &HostId| match found.get(host) {
            Some(name) => Arc::clone(name),
            None => Arc::new(HostName::unknown(*host)),
        };
        hosts.iter().map(name_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<HostName> {
        Arc::new(HostName {
            hostname: text.into(),
            display_name: text.into(),
        })
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_the_youngest() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let hosts = u32::try_from(3 * GENERATION_MAX).unwrap();
        for host in 0..hosts {
            cache.put(HostId(host), name("x"), now);
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION_MAX);
        assert!(cache.get(HostId(hosts - 1), now).is_some());
        assert!(cache.get(HostId(0), now).is_none());
    }

    #[test]
    fn names_grow_old() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(HostId(1), name("before"), now);
        assert_eq!(cache.get(HostId(1), now), Some(name("before")));
        assert_eq!(cache.get(HostId(1), now + AGE_MAX), None);
        cache.put(HostId(1), name("after"), now + AGE_MAX);
        assert_eq!(cache.get(HostId(1), now + AGE_MAX), Some(name("after")));
    }
}
