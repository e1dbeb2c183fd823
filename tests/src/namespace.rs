//! Network and mount namespaces of a test's own, so that kernel settings can be changed without touching the machine.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::process::run;

/// Runs `test` on a thread in a new network namespace and a new mount namespace whose mounts stay in it; processes that
/// it starts are in them, too. Gives `false`, and prints why, where that is not permitted.
pub fn inside(test: impl FnOnce() + Send) -> bool {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
                eprintln!("left out: this needs namespaces of its own ({error}); run it as root");
                return false;
            }
            mount(&["--make-rprivate", "/"]);
            test();
            true
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes a path read-only for processes in this namespace.
pub fn make_read_only(path: &str) {
    mount(&["--bind", path, path]);
    mount(&["-o", "remount,bind,ro", path]);
}

/// Runs `mount ARGS` in this namespace.
pub fn mount(args: &[&str]) {
    let output = run(Command::new("mount").arg("-n").args(args));
    assert!(output.status.success(), "mount {args:?}: {output:?}");
}
