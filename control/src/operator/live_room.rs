//! Memory for the rows of live queries whose answer is the results: so much for one request, and so much for all.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of rows of one request, all its queries together.
const REQUEST_BYTES_MAX: u32 = 64 << 20;
/// Bytes of rows of all requests.
const ALL_BYTES_MAX: u32 = 256 << 20;

/// What all requests share.
pub(super) fn shared() -> Arc<Semaphore> {
    let bytes = usize::try_from(ALL_BYTES_MAX).unwrap_or(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)))
}

/// One request's part, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    left: u32,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new(all: &Arc<Semaphore>) -> Self {
        Self {
            all: Arc::clone(all),
            taken: Mutex::new(Taken {
                left: REQUEST_BYTES_MAX,
                permit: None,
            }),
        }
    }

    /// False when there is no room for so many bytes.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(bytes) = u32::try_from(bytes) else {
            return false;
        };
        let Some(left) = taken.left.checked_sub(bytes) else {
            return false;
        };
        let Ok(permit) = Arc::clone(&self.all).try_acquire_many_owned(bytes) else {
            return false;
        };
        taken.left = left;
        match &mut taken.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_all_together_have_so_much_and_give_it_back() {
        let all = shared();
        let most = usize::try_from(REQUEST_BYTES_MAX).unwrap();
        let rooms: Vec<Room> = (0..5).map(|_| Room::new(&all)).collect();
        for room in &rooms[..4] {
            assert!(!room.take(most + 1));
            assert!(room.take(most - 1) && room.take(1));
            assert!(!room.take(1));
        }
        assert!(!rooms[4].take(1), "all is taken");
        assert!(!rooms[4].take(usize::MAX));
        let mut rooms = rooms.into_iter();
        drop(rooms.next());
        assert!(rooms.next_back().unwrap().take(most));
        drop(rooms);
        assert_eq!(
            all.available_permits(),
            usize::try_from(ALL_BYTES_MAX).unwrap()
        );
    }
}
