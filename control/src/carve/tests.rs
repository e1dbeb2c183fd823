use fleet_protocol::config::Config;
use fleet_protocol::ids::{HostId, NodeKeyHash};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::enrollment::NewEnrollment;
use crate::model::host::HostColumns;

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

struct Harness {
    state: TempDir,
    store: Arc<Store>,
    carves: Carves,
    host: HostId,
}

impl Harness {
    async fn start() -> Self {
        let state = TempDir::new().unwrap();
        let config = Config::default();
        let store = Arc::new(Store::open(&config, state.path()).await.unwrap());
        let carves = Carves::new(Arc::clone(&store), &config.carver, state.path());
        let enrollment = NewEnrollment {
            key: NodeKeyHash([1; 32]),
            identifier: "host".into(),
            instance_id: "instance".into(),
            address: "127.0.0.1".parse().unwrap(),
            at: NOW,
            columns: HostColumns::default(),
            details: serde_json::Map::new(),
        };
        let outcomes = store.enroll(&[enrollment], &|_| None).await.unwrap();
        let host = outcomes[0].host.id;
        Self {
            state,
            store,
            carves,
            host,
        }
    }

    fn request(&self, block_count: u64, block_size: u64, carve_size: u64) -> CarveBegin {
        CarveBegin {
            host: self.host,
            block_count,
            block_size,
            carve_size,
            carve_id: "carve".into(),
            request_id: "request".into(),
        }
    }

    async fn begin(&self, block_count: u64, block_size: u64, carve_size: u64) -> Secret {
        let request = self.request(block_count, block_size, carve_size);
        match self.carves.begin(request, NOW).await {
            Answer::CarveStarted { session_id } => session_id,
            other => panic!("{other:?}"),
        }
    }

    async fn block(&self, session: &Secret, block_id: u64, data: &[u8]) -> Answer {
        let block = CarveBlock {
            block_id,
            session_id: session.clone(),
            request_id: "request".into(),
            data: Bytes::copy_from_slice(data),
        };
        self.carves.block(block, NOW).await
    }

    async fn carve(&self, session: &Secret) -> Carve {
        let hash = session_hash(session.reveal());
        self.store.carve_by_session(&hash).await.unwrap().unwrap()
    }

    fn path(&self, carve: &Carve, extension: &str) -> PathBuf {
        let name = format!("{}.{extension}", carve.id.0);
        self.state.path().join("carves").join(name)
    }
}

const REFUSED: Answer = Answer::Refused(Reject::CarveRefused);

#[tokio::test]
async fn blocks_in_order_make_an_archive() {
    let harness = Harness::start().await;
    let session = harness.begin(3, 4, 10).await;
    assert!(session.reveal().len() >= 32);
    for (block_id, data) in [(0, &b"abcd"[..]), (1, b"efgh"), (2, b"ij")] {
        assert_eq!(
            harness.block(&session, block_id, data).await,
            Answer::Accepted
        );
        // Its answer was lost.
        assert_eq!(
            harness.block(&session, block_id, data).await,
            Answer::Accepted
        );
    }
    let carve = harness.carve(&session).await;
    assert!(carve.is_complete());
    assert_eq!((carve.bytes, carve.next_block), (10, 3));
    let file = harness.carves.file(carve.id).unwrap();
    assert_eq!(file, harness.path(&carve, "tar"));
    assert_eq!(std::fs::read(file).unwrap(), b"abcdefghij");
    assert_eq!(harness.block(&session, 3, b"x").await, REFUSED);
    let statistics = harness.carves.statistics_now();
    assert_eq!(
        (
            statistics.begun,
            statistics.completed,
            statistics.blocks,
            statistics.bytes
        ),
        (1, 1, 3, 10)
    );
}

#[tokio::test]
async fn compressed_archives_are_told_by_their_magic() {
    let harness = Harness::start().await;
    let session = harness.begin(1, 100, 6).await;
    let data = [0x28, 0xb5, 0x2f, 0xfd, 1, 2];
    assert_eq!(harness.block(&session, 0, &data).await, Answer::Accepted);
    let carve = harness.carve(&session).await;
    assert_eq!(
        harness.carves.file(carve.id).unwrap(),
        harness.path(&carve, "tar.zst")
    );
}

#[tokio::test]
async fn starts_beyond_the_bounds_are_refused() {
    let harness = Harness::start().await;
    for (count, size, total) in [
        (0, 1, 0),
        (1, 0, 1),
        (2, 4, 4),
        (1, 4, 5),
        (1, (16 << 20) + 1, 10),
        (u64::MAX, 1, u64::MAX),
        ((8 << 30) / 1024 + 1, 1024, (8 << 30) + 1),
    ] {
        let request = harness.request(count, size, total);
        assert_eq!(harness.carves.begin(request, NOW).await, REFUSED);
    }
    let mut request = harness.request(1, 4, 4);
    request.request_id = "x".repeat(ID_BYTES_MAX + 1);
    assert_eq!(harness.carves.begin(request, NOW).await, REFUSED);
}

#[tokio::test]
async fn a_broken_carve_stays_refused_and_says_why() {
    for (block_id, data) in [
        (1, &b"abcd"[..]),
        (0, b"abc"),
        (0, b"abcde"),
        (u64::MAX, b"abcd"),
    ] {
        let harness = Harness::start().await;
        let session = harness.begin(3, 4, 10).await;
        assert_eq!(harness.block(&session, block_id, data).await, REFUSED);
        assert_eq!(harness.block(&session, 0, b"abcd").await, REFUSED);
        let carve = harness.carve(&session).await;
        assert!(carve.error.is_some() && !carve.is_complete());
    }
}

#[tokio::test]
async fn strangers_change_nothing() {
    let harness = Harness::start().await;
    let session = harness.begin(1, 4, 4).await;
    let guess = Secret::new("A".repeat(43));
    assert_eq!(harness.block(&guess, 0, b"abcd").await, REFUSED);
    let block = CarveBlock {
        block_id: 0,
        session_id: session.clone(),
        request_id: "another".into(),
        data: Bytes::from_static(b"abcd"),
    };
    assert_eq!(harness.carves.block(block, NOW).await, REFUSED);
    assert_eq!(harness.block(&session, 0, b"abcd").await, Answer::Accepted);
}

#[tokio::test]
async fn what_was_not_recorded_is_written_again() {
    let harness = Harness::start().await;
    let session = harness.begin(2, 4, 8).await;
    assert_eq!(harness.block(&session, 0, b"abcd").await, Answer::Accepted);
    let carve = harness.carve(&session).await;
    // A crash between the file and the row: more bytes than the row says, then even the final name.
    let part = harness.path(&carve, "part");
    std::fs::write(&part, b"abcdEFGHIJ").unwrap();
    std::fs::rename(&part, harness.path(&carve, "tar")).unwrap();
    assert_eq!(harness.block(&session, 1, b"efgh").await, Answer::Accepted);
    let file = harness.carves.file(carve.id).unwrap();
    assert_eq!(std::fs::read(file).unwrap(), b"abcdefgh");
}

#[tokio::test]
async fn a_file_that_is_gone_may_come_again() {
    let harness = Harness::start().await;
    let session = harness.begin(2, 4, 8).await;
    assert_eq!(harness.block(&session, 0, b"abcd").await, Answer::Accepted);
    let carve = harness.carve(&session).await;
    std::fs::remove_file(harness.path(&carve, "part")).unwrap();
    let answer = harness.block(&session, 1, b"efgh").await;
    assert_eq!(answer, Answer::Refused(Reject::JournalUnavailable));
    assert_eq!(harness.carve(&session).await.error, None);
}

#[tokio::test]
async fn old_carves_and_orphans_go() {
    let harness = Harness::start().await;
    let session = harness.begin(1, 4, 4).await;
    harness.block(&session, 0, b"abcd").await;
    let carve = harness.carve(&session).await;
    let directory = harness.state.path().join("carves");
    std::fs::write(directory.join("999.part"), b"orphan").unwrap();
    std::fs::write(directory.join("notes.txt"), b"not ours").unwrap();
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(NOW.0));
    let expiry = Carver::default().expiry;
    harness.carves.expire(created + expiry).await.unwrap();
    assert!(harness.carves.file(carve.id).is_some());
    assert!(directory.join("999.part").exists() || created > SystemTime::now());
    let second = Duration::from_secs(1);
    let late = (created + expiry + second).max(SystemTime::now() + expiry + ORPHAN_GRACE + second);
    harness.carves.expire(late).await.unwrap();
    assert!(harness.carves.file(carve.id).is_none());
    assert_eq!(harness.store.carve(carve.id).await.unwrap(), None);
    let left: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["notes.txt"]);
}

proptest! {
    /// Whatever comes, only the next block in its right size moves a carve.
    #[test]
    fn only_the_next_block_counts(
        block_count in 1_u64..6, short in 0_u64..4, next in 0_u64..7, block_id in 0_u64..8, bytes in 0_usize..6,
    ) {
        let block_size = 4;
        let next = next.min(block_count);
        let carve = Carve {
            id: CarveId(1),
            host: HostId(1),
            session_hash: [0; 32],
            carve_id: String::new(),
            request_id: "request".into(),
            block_count,
            block_size,
            carve_size: block_count * block_size - short,
            next_block: next,
            bytes: 0,
            error: None,
            created_at: NOW,
            updated_at: NOW,
        };
        let block = CarveBlock {
            block_id,
            session_id: Secret::default(),
            request_id: "request".into(),
            data: Bytes::from(vec![0; bytes]),
        };
        let is_last = block_id + 1 == block_count;
        let wanted = if is_last { block_size - short } else { block_size };
        let has_size = bytes as u64 == wanted;
        match check_block(&carve, &block) {
            Ok(Step::Next { bytes: counted }) => {
                prop_assert!(block_id == next && next < block_count && has_size);
                prop_assert_eq!(counted, bytes as u64);
            }
            Ok(Step::Repeated) => prop_assert!(block_id + 1 == next && has_size),
            Err(_) => prop_assert!(
                !(has_size && (block_id + 1 == next || (block_id == next && next < block_count)))
            ),
        }
    }
}
