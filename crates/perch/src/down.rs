//! `perch down`: ends a server with everything that it left running, and with `--purge` its data too.
//!
//! It works whether a server lives or not, and may be repeated.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use perch_proxy::control::Link;
use rustix::process::{Pid, Signal};

use crate::paths::Paths;
use crate::server::lock::{DirLock, LockError};
use crate::server::plane_config;

/// How long a server or proxy may take to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a Machine may take to end after its signal, unless it says otherwise.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long cgroups may be busy after the last Machine ended.
const CGROUP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a proxy may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// Entry point of `perch down`.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let Some((dir, purge)) = parse(args) else {
        return crate::usage("error: usage: perch down [--data-dir DIR] [--purge]\n");
    };
    match down(dir.as_deref(), purge) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

/// Whether data goes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Keep,
    Purge,
}

fn parse(args: &[OsString]) -> Option<(Option<PathBuf>, Data)> {
    let mut dir = None;
    let mut data = Data::Keep;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.to_str()? {
            "--purge" => data = Data::Purge,
            "--data-dir" => dir = Some(PathBuf::from(rest.next()?)),
            other => dir = Some(PathBuf::from(other.strip_prefix("--data-dir=")?)),
        }
    }
    Some((dir, data))
}

fn down(dir: Option<&Path>, data: Data) -> anyhow::Result<()> {
    let paths = Paths::new(dir)?;
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "perch down must run as root; run: sudo {} down{}",
        std::env::current_exe()
            .map_or_else(|_| "perch".to_owned(), |exe| exe.display().to_string()),
        dir.map_or_else(String::new, |dir| format!(" --data-dir {}", dir.display()))
    );
    if !paths.data.exists() {
        println!("Nothing to do: {} does not exist", paths.data.display());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(end_everything(&paths, data))
}

async fn end_everything(paths: &Paths, data: Data) -> anyhow::Result<()> {
    let _lock = end_server(paths).await?;
    end_proxy(paths).await?;
    let stopped = end_machines(paths, data).await?;
    perch_net::Plane::remove_by_config(&plane_config(paths, &crate::config::Config::default()))
        .context("could not remove the network")?;
    remove_cgroups(&paths.cgroup_parent()).await;
    println!("Stopped {stopped} Machines and removed the network");
    if data == Data::Purge {
        purge(paths)?;
        println!("Removed {}", paths.data.display());
    }
    Ok(())
}

/// Takes the directory's lock, after its holder was asked to end.
async fn end_server(paths: &Paths) -> anyhow::Result<DirLock> {
    let deadline = tokio::time::Instant::now() + END_TIMEOUT;
    let mut asked = false;
    loop {
        match DirLock::take(&paths.lock()) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { pid: Some(pid), .. }) if !asked => {
                signal(pid, Signal::TERM)?;
                asked = true;
            }
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error.into()),
            Err(LockError::Held { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends a proxy whose server died before it.
async fn end_proxy(paths: &Paths) -> anyhow::Result<()> {
    let socket = paths.proxy_socket();
    let connect = Link::connect(&socket);
    let Ok(Ok((link, _listeners))) = tokio::time::timeout(GREETING_TIMEOUT, connect).await else {
        return Ok(());
    };
    let pid = i32::try_from(link.pid()).context("the proxy's process id is no process id")?;
    signal(pid, Signal::KILL)
}

fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid).context("process id 0 cannot be ended")?;
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).context("could not signal the running server"),
    }
}

async fn end_machines(paths: &Paths, data: Data) -> anyhow::Result<usize> {
    let mut stopped = 0;
    let Ok(entries) = std::fs::read_dir(paths.machines()) else { return Ok(0) };
    for entry in entries {
        let dir = entry.context("could not list the Machines")?.path();
        stopped += usize::from(end_machine(&dir, &paths.cgroup_parent()).await?);
        if data == Data::Purge {
            perch_machine::remove(&dir, &paths.cgroup_parent()).await?;
        }
    }
    Ok(stopped)
}

/// Asks a Machine to end, then kills it; says whether it ran.
async fn end_machine(dir: &Path, cgroup_parent: &str) -> anyhow::Result<bool> {
    let Some(machine) = perch_machine::adopt(dir, cgroup_parent).await? else { return Ok(false) };
    let kill_signal = machine.spec().kill_signal;
    if machine.signal(kill_signal).is_err() {
        return Ok(false);
    }
    if tokio::time::timeout(MACHINE_TIMEOUT, machine.wait()).await.is_err() {
        machine.kill()?;
        machine.wait().await?;
    }
    Ok(true)
}

/// Removes the Machines' parent cgroup from every hierarchy. The kernel and the last shims take a moment
/// to let go of what is inside.
async fn remove_cgroups(parent: &str) {
    let deadline = tokio::time::Instant::now() + CGROUP_TIMEOUT;
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies =
        std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let dir = hierarchy.join(parent);
        while let Err(error) = std::fs::remove_dir(&dir) {
            let busy = error.kind() == std::io::ErrorKind::ResourceBusy;
            if !busy || deadline < tokio::time::Instant::now() {
                warn_unless_absent(&dir, &error);
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn warn_unless_absent(dir: &Path, error: &std::io::Error) {
    if dir.exists() {
        eprintln!("warning: could not remove {}: {error}", dir.display());
    }
}

/// Removes what a server keeps, and the directory itself if nothing else lies in it.
fn purge(paths: &Paths) -> anyhow::Result<()> {
    let dirs = [paths.images(), paths.machines(), paths.init()];
    for dir in dirs.iter().filter(|dir| dir.exists()) {
        std::fs::remove_dir_all(dir)
            .with_context(|| format!("could not remove {}", dir.display()))?;
    }
    let own = [
        "store.db",
        "store.db-wal",
        "store.db-shm",
        "store.db.lock",
        "lock",
        "api.sock",
        "proxy.sock",
        "netns",
        "proxy.log",
    ];
    for name in own {
        for root in [&paths.data, &paths.run] {
            remove_file(&root.join(name))?;
        }
    }
    for root in [&paths.run, &paths.data] {
        match std::fs::remove_dir(root) {
            Ok(()) => {}
            Err(error) => tracing::debug!(dir = %root.display(), %error, "left in place"),
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("could not remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str], expected: Option<(Option<&str>, Data)>) {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        assert_eq!(parse(&args), expected.map(|(dir, data)| (dir.map(PathBuf::from), data)));
    }

    #[test]
    fn arguments_are_read_in_any_order_and_strangers_are_refused() {
        check(&[], Some((None, Data::Keep)));
        check(&["--purge", "--data-dir", "/d"], Some((Some("/d"), Data::Purge)));
        check(&["--data-dir=/d"], Some((Some("/d"), Data::Keep)));
        check(&["--data-dir"], None);
        check(&["--prune"], None);
    }
}
