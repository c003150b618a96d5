//! Processes as `/proc` shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process at the moment of the look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number as this side sees it.
    pub pid: i32,
    /// The number of its parent.
    pub parent: i32,
    /// State letter; `Z` is a process that nobody has reaped.
    pub state: char,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its program, where that can be read.
    pub exe: Option<PathBuf>,
}

impl Process {
    /// Kills it and waits until it is gone or a zombie. Its memory and its arguments are gone earlier than its
    /// sockets: only the end itself tells that nobody is served by it any more.
    pub fn kill(&self) -> Result<()> {
        let pid = Pid::from_raw(self.pid).context("0 is no process")?;
        let process = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("looking at process {pid}", pid = self.pid))?;
        pidfd_send_signal(&process, Signal::KILL)
            .with_context(|| format!("killing process {pid}", pid = self.pid))?;
        let mut ends = [PollFd::new(&process, PollFlags::IN)];
        let ended = poll(&mut ends, Some(&GONE))?;
        ensure!(0 < ended, "process {} hangs in the kernel", self.pid);
        Ok(())
    }

    /// Where its descriptors lead.
    pub fn descriptors(&self) -> Vec<String> {
        let entries =
            fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect()
    }
}

/// How many network namespaces these processes are in or hold.
pub fn network_namespaces(processes: &[Process]) -> usize {
    let mut seen = BTreeSet::new();
    for process in processes {
        let own = fs::read_link(format!("/proc/{}/ns/net", process.pid));
        seen.extend(own.map(|link| link.to_string_lossy().into_owned()));
        seen.extend(process.descriptors().into_iter().filter(|link| link.starts_with("net:[")));
    }
    seen.len()
}

/// A killed process that lives longer than this hangs in the kernel.
const GONE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Sends a signal to one process.
pub(crate) fn signal(pid: i32, signal: Signal) -> Result<()> {
    let target = Pid::from_raw(pid).context("0 is no process")?;
    rustix::process::kill_process(target, signal).with_context(|| format!("signal to {pid}"))
}

/// All processes in the process namespace of `init` and in those below it, without `init`.
///
/// Parentage alone does not tell: who enters a namespace keeps a parent outside.
pub(crate) fn in_namespace_of(init: i32) -> Vec<Process> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(init) else { return Vec::new() };
    let all: Vec<Process> = pids().filter_map(read).collect();
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in &all {
        children.entry(process.parent).or_default().push(process);
    }
    let roots = all.iter().filter(|process| namespace(process.pid).as_ref() == Some(&wanted));
    let mut open: Vec<&Process> = roots.collect();
    let mut found = BTreeMap::new();
    while let Some(process) = open.pop() {
        if found.insert(process.pid, process.clone()).is_none() {
            open.extend(children.get(&process.pid).into_iter().flatten());
        }
    }
    found.remove(&init);
    found.into_values().collect()
}

/// Whether a process has this in its arguments.
pub(crate) fn any_names(part: &str) -> bool {
    let names = |process: Process| process.args.iter().any(|arg| arg.contains(part));
    pids().filter_map(read).any(names)
}

/// Where a program is, as root would find it.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let dirs = std::env::split_paths(&path).chain(usual);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain spaces and parentheses; the last parenthesis ends it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let args = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args = args.split(|byte| *byte == 0).filter(|arg| !arg.is_empty());
    let args = args.map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
    Some(Process { pid, parent, state, args, exe })
}
