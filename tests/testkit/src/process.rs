//! Processes as `/proc` shows them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

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
    /// Kills it and waits until it is gone or a zombie.
    pub fn kill(&self) -> Result<()> {
        signal(self.pid, Signal::KILL)?;
        crate::wait_until("the killed process to be gone", crate::process::GONE, || {
            let now = read(self.pid);
            Ok(now.is_none_or(|now| now.state == 'Z' || now.args != self.args).then_some(()))
        })
    }
}

/// A killed process that lives longer than this hangs in the kernel.
const GONE: std::time::Duration = std::time::Duration::from_secs(5);

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
