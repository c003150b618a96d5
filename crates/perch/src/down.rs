//! `perch down`: ends a server with everything that it left running, and with `--purge` its data too.
//!
//! It works whether a server lives or not, and may be repeated.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};

use crate::command::Place;
use crate::paths::Paths;
use crate::process;
use crate::server::lock::DirLock;
use crate::server::plane_config;

/// How long a server may take to end after SIGTERM, or a proxy after SIGKILL.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Machines that are ended at once. Each holds three descriptors meanwhile; a few hundred keep all processors busy.
const ENDINGS_MAX: usize = 256;
/// How long cgroups may be busy after the last Machine ended.
const CGROUP_TIMEOUT: Duration = Duration::from_secs(3);

/// What is ended, and how much of it.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Remove the data as well
    #[arg(long)]
    purge: bool,
}

/// Entry point of `perch down`.
pub(crate) fn main(options: &Options) -> ExitCode {
    let data = if options.purge { Data::Purge } else { Data::Keep };
    match down(options.place.data_dir.as_deref(), data) {
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

fn down(dir: Option<&Path>, data: Data) -> anyhow::Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "perch down must run as root; run: sudo {} down{}",
        std::env::current_exe()
            .map_or_else(|_| "perch".to_owned(), |exe| exe.display().to_string()),
        dir.map_or_else(String::new, |dir| format!(" --data-dir {}", dir.display()))
    );
    let paths = Paths::new(dir)?;
    crate::server::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(end_everything(&paths, data))
}

/// Without the data directory the rest goes by its names.
async fn end_everything(paths: &Paths, data: Data) -> anyhow::Result<()> {
    let _lock = end_server(paths)?;
    end_proxy(paths)?;
    let there = paths.data.exists();
    let stopped = end_machines(paths, data).await?;
    clear_cgroups(&paths.cgroup_parent()).await;
    perch_net::Plane::remove_by_config(&plane_config(paths, &crate::config::Config::default()))
        .context("could not remove the network")?;
    if !there {
        println!("Nothing to stop: {} does not exist", paths.data.display());
        return Ok(());
    }
    println!("Stopped {stopped} Machines and removed the network");
    if let Err(error) = crate::swap::pause(paths) {
        eprintln!("warning: {error:#}");
    }
    if data == Data::Purge {
        purge(paths)?;
        println!("Removed {}", paths.data.display());
        let key = paths.secrets_key();
        if key.exists() {
            println!(
                "Left {}, which opens the secrets in backups; remove it if you keep none",
                key.display()
            );
        }
    }
    Ok(())
}

/// Asks whoever holds the directory's lock to end, and takes it; there is none without the directory.
fn end_server(paths: &Paths) -> anyhow::Result<Option<DirLock>> {
    let servers = process::holders(&paths.lock());
    for server in &servers {
        process::signal(server, Signal::TERM).context("could not signal the running server")?;
    }
    for server in &servers {
        let ended = process::ends_within(server, END_TIMEOUT);
        anyhow::ensure!(ended, "the server does not end within {} s", END_TIMEOUT.as_secs());
    }
    let there = paths.data.exists();
    there.then(|| DirLock::take(&paths.lock())).transpose().map_err(Into::into)
}

/// Ends a proxy whose server died before it.
fn end_proxy(paths: &Paths) -> anyhow::Result<()> {
    for pid in paths.retired_proxies() {
        kill_proxy(&paths.retired_record(pid))?;
        remove_file(&paths.retired_socket(pid))?;
    }
    kill_proxy(&paths.proxy_record())
}

fn kill_proxy(record: &Path) -> anyhow::Result<()> {
    if let Some(proxy) = process::recall(record) {
        process::signal(&proxy, Signal::KILL).context("could not kill the proxy")?;
        anyhow::ensure!(process::ends_within(&proxy, END_TIMEOUT), "the proxy does not die");
    }
    remove_file(record)
}

/// Ends the Machines side by side; answers how many ran. One that cannot be ended in good order is killed with its
/// cgroup.
async fn end_machines(paths: &Paths, data: Data) -> anyhow::Result<usize> {
    let mut endings = tokio::task::JoinSet::new();
    let mut stopped = 0;
    for entry in std::fs::read_dir(paths.machines()).into_iter().flatten() {
        let dir = entry.context("could not list the Machines")?.path();
        if ENDINGS_MAX <= endings.len() {
            stopped += count(endings.join_next().await);
        }
        let parent = paths.cgroup_parent();
        endings.spawn(async move {
            let ended = end_machine(&dir, &parent, data).await;
            ended.with_context(|| format!("could not end {} in good order", dir.display()))
        });
    }
    while let Some(ended) = endings.join_next().await {
        stopped += count(Some(ended));
    }
    Ok(stopped)
}

fn count(ended: Option<Result<anyhow::Result<bool>, tokio::task::JoinError>>) -> usize {
    match ended.transpose().map_err(anyhow::Error::from).and_then(Option::transpose) {
        Ok(ran) => usize::from(ran == Some(true)),
        Err(error) => {
            eprintln!("warning: {error:#}");
            0
        }
    }
}

/// Asks a Machine to end, then kills it; says whether it ran.
async fn end_machine(dir: &Path, cgroup_parent: &str, data: Data) -> anyhow::Result<bool> {
    let machine = perch_machine::adopt(dir, cgroup_parent).await?;
    let ran = match &machine {
        Some(machine) => stop(machine).await?,
        None => false,
    };
    if data == Data::Purge {
        perch_machine::remove(dir, cgroup_parent).await?;
    }
    Ok(ran)
}

async fn stop(machine: &perch_machine::Machine) -> anyhow::Result<bool> {
    let spec = machine.spec();
    if machine.signal(spec.kill_signal).is_err() {
        return Ok(false);
    }
    let limit = Duration::from_millis(spec.kill_timeout_ms);
    if tokio::time::timeout(limit, machine.wait()).await.is_err() {
        machine.kill()?;
        machine.wait().await?;
    }
    Ok(true)
}

/// Kills what still is in the Machines' parent cgroup and removes it from every hierarchy. The kernel and the last
/// shims take a moment to let go of what is inside.
async fn clear_cgroups(parent: &str) {
    let deadline = tokio::time::Instant::now() + CGROUP_TIMEOUT;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for group in hierarchies(&mounts).map(|root| root.join(parent)) {
        while let Err(error) = clear(&group) {
            if deadline < tokio::time::Instant::now() {
                eprintln!("warning: could not remove {}: {error}", group.display());
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn hierarchies(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup").then_some(())?;
        mount.split(' ').nth(4).map(PathBuf::from)
    })
}

/// Kills what is in a cgroup and below, and removes it.
fn clear(group: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            clear(&entry.path())?;
        }
    }
    let pids = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        match rustix::process::kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    match std::fs::remove_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes what a server keeps, and the directory itself if nothing else lies in it.
fn purge(paths: &Paths) -> anyhow::Result<()> {
    let dirs = [
        paths.images(),
        paths.machines(),
        paths.volumes(),
        paths.snapshots(),
        paths.init(),
        paths.ballast(),
    ];
    for dir in dirs.iter().filter(|dir| dir.exists()) {
        std::fs::remove_dir_all(dir)
            .with_context(|| format!("could not remove {}", dir.display()))?;
    }
    purge_restores(paths)?;
    crate::swap::remove(paths)?;
    let own = [
        "perch.toml.from-backup",
        "store.db",
        "store.db-wal",
        "store.db-shm",
        "store.db.lock",
        "lock",
        "api.sock",
        "proxy.sock",
        "netns",
        "proxy.log",
        "ledger.jsonl",
        "ledger.1.jsonl",
        "ledger.followed",
        "ledger.followed.new",
        "fly-src.key",
        "fly-src.key.new",
        "proxy.json",
        "upgrade.lock",
        "upg.sock",
        "tag",
        "cgroup-parent",
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

/// What restores left half-done or put aside, and copies of the store that migrations made.
fn purge_restores(paths: &Paths) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(&paths.data).context("could not list the data directory")? {
        let path = entry.context("could not list the data directory")?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let of_restore = ["restore.new", "restore.swap"].contains(&name)
            || name.starts_with(Paths::BEFORE_RESTORE);
        if of_restore {
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("could not remove {}", path.display()))?;
        } else if name.starts_with("store.db.schema-") {
            remove_file(&path)?;
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
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use perch_proxy::control::FromProxy;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::command::Command::Down;
    use crate::command::tests::parse;

    #[test]
    fn arguments_are_read_in_any_order_and_strangers_are_refused() {
        let parsed = |words: &[&str]| match parse(&[&["down"], words].concat()) {
            Ok(Down(Options { place, purge })) => Some((place.data_dir, purge)),
            _ => None,
        };
        assert_eq!(parsed(&[]), Some((None, false)));
        assert_eq!(parsed(&["--purge", "--data-dir", "/d"]), Some((Some("/d".into()), true)));
        assert_eq!(parsed(&["--data-dir=/d"]), Some((Some("/d".into()), false)));
        assert_eq!([parsed(&["--data-dir"]), parsed(&["--prune"])], [None, None]);
    }

    #[test]
    fn a_process_that_the_proxy_names_is_not_killed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let paths = Paths::new(Some(dir.path())).expect("short");
        let stranger = sleeper(Stdio::null());
        let liar = lie(&paths.proxy_socket(), stranger.id());
        end_proxy(&paths).expect("nothing is to be ended");
        drop(liar);
        assert_eq!(ended_by(stranger, Signal::TERM), Signal::TERM.as_raw());
    }

    #[test]
    fn only_hierarchies_of_cgroups_are_looked_into() {
        let mountinfo = "\
25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
27 25 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
broken line";
        let found: Vec<PathBuf> = hierarchies(mountinfo).collect();
        assert_eq!(found, ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"].map(PathBuf::from));
    }

    /// Greets whoever connects as a proxy with this process id.
    fn lie(socket: &Path, pid: u32) -> UnixListener {
        let listener = UnixListener::bind(socket).expect("it can be bound");
        let copy = listener.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            let Ok((stream, _)) = copy.accept() else { return };
            let hello = FromProxy::Hello {
                version: perch_proxy::control::VERSION,
                pid,
                thaws: false,
                thawed: Vec::new(),
                retires: false,
                listeners: Vec::new(),
            };
            let line = serde_json::to_string(&hello).expect("JSON") + "\n";
            let fds = [stream.as_fd(); 6];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(6))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            let parts = [IoSlice::new(line.as_bytes())];
            sendmsg(&stream, &parts, &mut ancillary, SendFlags::empty()).expect("it greets");
        });
        listener
    }

    fn sleeper(stdin: Stdio) -> Child {
        Command::new("sleep").arg("60").stdin(stdin).spawn().expect("sleep is there")
    }

    /// Signals a child; answers the signal that ended it, which is another one if that came first.
    fn ended_by(mut child: Child, signal: Signal) -> i32 {
        let pid = Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("it is not reaped yet");
        child.wait().expect("it is ours").signal().expect("a signal ended it")
    }
}
