//! Which hosts are to be called, in slices, so that a large campaign does not bring all its hosts at once. Pure.
//!
//! A host that waits here is asked for nothing by whoever counts: it may have answered meanwhile, and then its read
//! finds nothing. What must not happen is the other way round, that a host with something outstanding is neither
//! called nor here.

use fleet_protocol::limits::CALLS_PER_SLICE;
use roaring::RoaringBitmap;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    waiting: RoaringBitmap,
    /// Where the last slice ended: the next one goes on from there, so that no host waits for ever.
    from: u32,
}

impl Calls {
    /// To be called.
    pub(crate) fn push(&mut self, hosts: &RoaringBitmap) {
        self.waiting |= hosts;
    }

    /// One more.
    pub(crate) fn push_one(&mut self, host: u32) {
        self.waiting.insert(host);
    }

    pub(crate) fn len(&self) -> u64 {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The hosts to call now.
    pub(crate) fn slice(&mut self) -> RoaringBitmap {
        let count = usize::try_from(CALLS_PER_SLICE).unwrap_or(usize::MAX);
        let ahead = self.waiting.range(self.from..);
        let around = self.waiting.range(..self.from);
        let slice: Vec<u32> = ahead.chain(around).take(count).collect();
        self.from = slice.last().map_or(0, |last| last.saturating_add(1));
        let slice: RoaringBitmap = slice.into_iter().collect();
        self.waiting -= &slice;
        slice
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn twenty_thousand_take_twenty_slices() {
        let mut calls = Calls::default();
        calls.push(&(1..=20_000).collect());
        let mut slices = 0;
        while !calls.is_empty() {
            assert_eq!(calls.slice().len(), CALLS_PER_SLICE);
            slices += 1;
        }
        assert_eq!(slices, 20);
    }

    proptest! {
        #[test]
        fn everybody_is_called_though_others_come_again(
            hosts in prop::collection::btree_set(0_u32..u32::MAX, 1..50),
        ) {
            let mut calls = Calls::default();
            // So many of low ids that come again and again.
            let busy: RoaringBitmap = (0..5 * u32::try_from(CALLS_PER_SLICE).unwrap()).collect();
            calls.push(&hosts.iter().copied().collect());
            let mut called = RoaringBitmap::new();
            for _ in 0..12 {
                calls.push(&busy);
                called |= calls.slice();
            }
            prop_assert!(hosts.iter().all(|host| called.contains(*host)));
        }
    }
}
