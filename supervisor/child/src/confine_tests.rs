//! From inside: a process that is confined tries what it must not be able to do, and what it must.
//!
//! A test starts itself again with an environment variable set; the child confines itself and prints what came of each
//! attempt.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::*;

const INSIDE: &str = "FLEET_TEST_CONFINED_DIR";

/// Runs this test again, confined; gives what it printed, a line each that begins with `@`.
fn from_inside(test: &str, directory: &Path) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, directory)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<_> = text
        .lines()
        .filter_map(|line| Some(line.split_once('@')?.1.to_owned()))
        .collect();
    assert!(
        lines.last().is_some_and(|line| line == "end"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    lines
}

fn say(what: &str, result: Result<(), impl std::fmt::Display>) {
    let result = match result {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("refused: {error}"),
    };
    // Not println, whose lock a harness may hold.
    let line = format!("@{what} {result}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
}

fn end() {
    let _ = std::io::stdout().write_all(b"@end\n");
}

/// The user is the same where it has not changed, so that only the filter refuses.
fn look_into_the_parent() -> nix::Result<()> {
    let mut bytes = [0; 1];
    let base = std::ptr::from_ref(&INSIDE).addr();
    let remote = nix::sys::uio::RemoteIoVec { base, len: 1 };
    let mut local = [std::io::IoSliceMut::new(&mut bytes)];
    let parent = nix::unistd::getppid();
    nix::sys::uio::process_vm_readv(parent, &mut local, &[remote]).map(|_| ())
}

/// What neither a worker nor control may.
fn try_what_nobody_may(outside: &Path) {
    say("read /etc/passwd", File::open("/etc/passwd").map(|_| ()));
    say("write outside", File::create(outside).map(|_| ()));
    say("execute", Command::new("/bin/true").status().map(|_| ()));
    let inet = |kind| socket(AddressFamily::Inet, kind, SockFlag::empty(), None);
    say("udp", inet(SockType::Datagram).map(|_| ()));
    say("packets", {
        let family = AddressFamily::Packet;
        socket(family, SockType::Raw, SockFlag::empty(), None).map(|_| ())
    });
    say("look into the parent", look_into_the_parent());
    say(
        "unshare",
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER),
    );
    // Signal 0 only asks.
    let parent = nix::unistd::getppid();
    say("signal the parent", nix::sys::signal::kill(parent, None));
}

fn try_from_a_thread() {
    let thread = std::thread::Builder::new().spawn(|| File::open("/etc/passwd").map(|_| ()));
    let result = thread.map(|thread| thread.join().unwrap());
    say("thread starts", result.as_ref().map(|_| ()));
    if let Ok(result) = result {
        say("thread reads /etc/passwd", result);
    }
}

fn confine() -> Confine {
    let user = Uid::effective().is_root().then_some(User {
        uid: 65_534,
        gid: 65_534,
    });
    Confine {
        is_on: true,
        user,
        root: None,
        may_dump: false,
    }
}

fn connect(port: &str) -> io::Result<()> {
    let port: u16 = port.parse().unwrap();
    TcpStream::connect(("127.0.0.1", port)).map(|_| ())
}

fn assert_same(lines: &[String], expected: &[(&str, bool)]) {
    for (what, is_done) in expected {
        let found = lines.iter().find_map(|line| line.strip_prefix(what));
        let found = found.unwrap_or_else(|| panic!("{what} is not in {lines:?}"));
        assert_eq!(found.trim() == "done", *is_done, "{what}: {lines:?}");
    }
}

/// A directory that everybody may look into, with sockets and a port.
struct Outside {
    dir: tempfile::TempDir,
    _unix: UnixListener,
    tcp: [std::net::TcpListener; 2],
}

impl Outside {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| {
            let all = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(path, all).unwrap();
        };
        open(dir.path());
        let socket = dir.path().join("socket");
        let unix = UnixListener::bind(&socket).unwrap();
        open(&socket);
        for name in ["state", "other"] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            open(&path);
        }
        let tcp = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = tcp
            .each_ref()
            .map(|of| of.local_addr().unwrap().port().to_string());
        std::fs::write(dir.path().join("ports"), ports.join(" ")).unwrap();
        Self {
            dir,
            _unix: unix,
            tcp,
        }
    }
}

fn ports(dir: &Path) -> [String; 2] {
    let text = std::fs::read_to_string(dir.join("ports")).unwrap();
    let (one, two) = text.split_once(' ').unwrap();
    [one.to_owned(), two.to_owned()]
}

#[test]
fn a_worker_has_its_sockets_and_nothing_else() {
    const NAME: &str = "confine::tests::a_worker_has_its_sockets_and_nothing_else";
    if let Some(dir) = std::env::var_os(INSIDE) {
        worker_inside(Path::new(&dir));
        return;
    }
    let outside = Outside::new();
    assert_eq!(outside.tcp.len(), 2);
    let lines = from_inside(NAME, outside.dir.path());
    assert_same(
        &lines,
        &[
            ("read /etc/passwd", false),
            ("write outside", false),
            ("execute", false),
            ("udp", false),
            ("packets", false),
            ("look into the parent", false),
            ("unshare", false),
            ("signal the parent", false),
            ("tcp", false),
            ("disconnected tcp", false),
            ("thread starts", true),
            ("thread reads /etc/passwd", false),
            ("read what is open", true),
            ("link", true),
            ("no capabilities", true),
        ],
    );
}

fn worker_inside(dir: &Path) {
    let mut open = File::open("/proc/self/status").unwrap();
    let [port, _] = ports(dir);
    let taken = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    let reach = Reach {
        paths: Vec::new(),
        ports: Some(Vec::new()),
        sockets: Some(vec![dir.join("socket")]),
        calls: Calls::Worker,
    };
    let sandbox = apply(&confine(), &reach).unwrap();
    assert_ne!(sandbox.level, Level::None);
    try_what_nobody_may(&dir.join("other/file"));
    say("tcp", connect(&port));
    // A connection that is given up and made anew, to elsewhere, is no socket call.
    say("disconnected tcp", {
        let socket = socket2::SockRef::from(&taken);
        let address: std::net::SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        socket
            .connect(&address.into())
            .and_then(|()| socket.peer_addr())
            .map(|_| ())
    });
    try_from_a_thread();
    let mut text = String::new();
    say(
        "read what is open",
        open.read_to_string(&mut text).map(|_| ()),
    );
    say("link", UnixStream::connect(dir.join("socket")).map(|_| ()));
    say("no capabilities", without_capabilities(&text));
    end();
}

fn without_capabilities(status: &str) -> Result<(), String> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let found = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].map(field);
    let is_good = found.iter().all(|text| text == "0000000000000000")
        && field("NoNewPrivs:") == "1"
        && field("Seccomp:") == "2";
    is_good
        .then_some(())
        .ok_or_else(|| status.replace('\n', "; "))
}

#[test]
fn control_has_its_directory_and_its_ports() {
    const NAME: &str = "confine::tests::control_has_its_directory_and_its_ports";
    if let Some(dir) = std::env::var_os(INSIDE) {
        control_inside(Path::new(&dir));
        return;
    }
    let outside = Outside::new();
    let lines = from_inside(NAME, outside.dir.path());
    assert_same(
        &lines,
        &[
            ("read /etc/passwd", false),
            ("write outside", false),
            ("execute", false),
            ("udp", false),
            ("packets", false),
            ("look into the parent", false),
            ("unshare", false),
            ("signal the parent", false),
            ("its port", true),
            ("another port", false),
            ("thread starts", true),
            ("thread reads /etc/passwd", false),
            ("its directory", true),
            ("a store's socket", true),
            ("no capabilities", true),
        ],
    );
}

fn control_inside(dir: &Path) {
    let mut open = File::open("/proc/self/status").unwrap();
    let [port, other] = ports(dir);
    let reach = Reach {
        paths: vec![(dir.join("state"), Right::Write)],
        ports: Some(vec![port.parse().unwrap()]),
        sockets: None,
        calls: Calls::Control { has_names: false },
    };
    let sandbox = apply(&confine(), &reach).unwrap();
    assert_ne!(sandbox.level, Level::None);
    try_what_nobody_may(&dir.join("other/file"));
    say("its port", connect(&port));
    say("another port", connect(&other));
    try_from_a_thread();
    say("its directory", use_directory(&dir.join("state")));
    say(
        "a store's socket",
        UnixStream::connect(dir.join("socket")).map(|_| ()),
    );
    let mut text = String::new();
    let _ = open.read_to_string(&mut text);
    say("no capabilities", without_capabilities(&text));
    end();
}

fn use_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path.join("log"))?;
    std::fs::write(path.join("log/.new"), "text")?;
    std::fs::rename(path.join("log/.new"), path.join("log/a"))?;
    File::open(path.join("log"))?.sync_all()?;
    std::fs::remove_file(path.join("log/a"))
}
