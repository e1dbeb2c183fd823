//! Port groups as this kernel keeps them.

use std::collections::HashMap;
use std::net::TcpStream;

use super::*;

const CLIENTS: usize = 240;

fn slots(weights: &[u32]) -> Slots {
    Slots {
        is_open: vec![true; weights.len()],
        weights: weights.to_vec(),
        backlog: 512,
    }
}

fn group(address: &str, weights: &[u32]) -> Group {
    let slots = slots(weights);
    let mut group = Group::bind(address.parse().unwrap(), &slots).unwrap();
    group.listen(&slots).unwrap();
    group
}

fn connect(group: &Group, count: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(group.address()).unwrap();
    (0..count).map(connect).collect()
}

fn accepted(group: &Group, slot: usize) -> usize {
    let socket = group.sockets[slot].as_ref().unwrap();
    std::iter::from_fn(|| socket.accept().ok()).count()
}

/// Connections that each slot gets out of [`CLIENTS`].
fn shares(group: &Group) -> Vec<usize> {
    let _clients = connect(group, CLIENTS);
    let slots = 0..group.sockets.len();
    slots.map(|slot| accepted(group, slot)).collect()
}

/// Each slot gets connections exactly when it has a weight. With 240 connections and a part of a sixteenth or more, to
/// get none by chance is once in five million.
fn assert_steered(group: &Group, weights: &[u32]) {
    let shares = shares(group);
    assert_eq!(shares.iter().sum::<usize>(), CLIENTS, "{shares:?}");
    for (slot, (share, weight)) in shares.iter().zip(weights).enumerate() {
        assert_eq!(
            *share > 0,
            *weight > 0,
            "slot {slot}: {shares:?} {weights:?}"
        );
    }
}

#[test]
fn each_slot_gets_its_part_and_one_without_weight_nothing() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let mut group = group(address, &[1, 1, 1, 1]);
        assert_ne!(group.address().port(), 0);
        assert_steered(&group, &[1, 1, 1, 1]);
        for weights in [[1, 1, 0, 1], [0, 0, 4, 1], [0, 1, 0, 0]] {
            group.steer(&weights);
            assert!(group.is_steered());
            assert_steered(&group, &weights);
        }
        group.steer(&[0, 0, 0, 0]);
        assert!(!group.is_steered());
        assert_steered(&group, &[1, 1, 1, 1]);
    }
}

#[test]
fn indices_are_followed_when_slots_stop_to_listen_and_listen_again() {
    let mut group = group("127.0.0.1:0", &[1, 1, 1, 1]);
    let all = slots(&[1, 1, 1, 1]);
    // The last moves into the hole, and who comes back is last: only one that follows gets the weights right.
    group.shut(1);
    for weights in [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] {
        group.steer(&weights);
        assert_steered(&group, &weights);
    }
    group.shut(0);
    group.open(1, all.backlog).unwrap();
    group.open(0, all.backlog).unwrap();
    for weights in [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] {
        group.steer(&weights);
        assert_steered(&group, &weights);
    }
    // All at once: the kernel forgets the program with the last listener.
    (0..4).for_each(|slot| group.shut(slot));
    TcpStream::connect(group.address()).unwrap_err();
    group.listen(&slots(&[0, 0, 1, 0])).unwrap();
    assert_steered(&group, &[0, 0, 1, 0]);
}

#[test]
fn slots_are_added_and_closed() {
    let mut group = group("127.0.0.1:0", &[1, 1]);
    group.listen(&slots(&[1, 0, 1, 1])).unwrap();
    assert_steered(&group, &[1, 0, 1, 1]);
    group.close(3);
    group.close(2);
    assert_eq!((group.fd(2), group.fd(3)), (None, None));
    group.steer(&[1, 1]);
    let _clients = connect(&group, CLIENTS);
    assert_eq!(accepted(&group, 0) + accepted(&group, 1), CLIENTS);
}

#[test]
fn a_slot_that_is_closed_at_first_is_opened_later() {
    let mut shape = slots(&[1, 0]);
    shape.is_open[1] = false;
    let mut group = Group::bind("127.0.0.1:0".parse().unwrap(), &shape).unwrap();
    group.listen(&shape).unwrap();
    assert_eq!(group.fd(1), None);
    group.listen(&slots(&[0, 1])).unwrap();
    assert_steered(&group, &[0, 1]);
}

#[test]
fn a_foreign_socket_in_the_group_gets_nothing_wherever_it_stands() {
    let mut group = group("127.0.0.1:0", &[1, 1, 1]);
    let foreign = bind_one(group.address(), true).unwrap();
    foreign.listen(512).unwrap();
    let inode = fstat(&foreign).unwrap().st_ino;
    let ours: Vec<u64> = group.inodes().collect();
    assert_eq!(ours.len(), 3);
    // Nobody knows of it yet.
    assert_steered(&group, &[1, 1, 1]);
    group.meet(&[inode]);
    // It moves into the hole of the one that ends.
    group.shut(0);
    group.open(0, 512).unwrap();
    for weights in [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]] {
        group.steer(&weights);
        assert_steered(&group, &weights);
    }
    foreign.accept().unwrap_err();
    // Its end moves one of ours.
    drop(foreign);
    group.meet(&[]);
    for weights in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        group.steer(&weights);
        assert_steered(&group, &weights);
    }
}

#[test]
fn what_waits_moves_to_the_others_where_the_kernel_does_that() {
    // On a thread, which has a network of its own until it ends.
    let thread = std::thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("left out: this needs a network namespace ({error})");
            return;
        }
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1").unwrap();
        let mut group = group("127.0.0.1:0", &[1, 0, 0]);
        let _clients = connect(&group, CLIENTS);
        assert!(group.is_waiting(0) && !group.is_waiting(1));
        group.shut(0);
        let moved = [accepted(&group, 1), accepted(&group, 2)];
        assert_eq!(moved[0] + moved[1], CLIENTS, "{moved:?}");
        group.listen(&slots(&[1, 0, 0])).unwrap();
        assert_steered(&group, &[1, 0, 0]);
    });
    thread.join().unwrap();
}

#[test]
fn who_waits_is_seen() {
    let group = group("127.0.0.1:0", &[0, 1]);
    assert!(!group.is_waiting(1));
    let _client = connect(&group, 1);
    assert!(group.is_waiting(1) && !group.is_waiting(0));
}

#[test]
fn what_cannot_be_bound_is_explained() {
    let first = group("127.0.0.1:0", &[1, 1]);
    let nowhere = "203.0.113.1:0".parse().unwrap();
    let reasons: HashMap<_, _> = [
        (first.address(), "taken by"),
        (nowhere, "not an address of"),
    ]
    .into();
    for (address, part) in reasons {
        let reason = explain(address, &Group::bind(address, &slots(&[1])).unwrap_err());
        assert!(reason.contains(part), "{reason}");
    }
}
