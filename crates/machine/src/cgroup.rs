//! A Machine's cgroups: where they are on cgroup v1, v2 and both at once, and how to empty and remove them.
//!
//! A Machine is *born* in its v2 cgroup: moving a process waits for all processors, 5 to 20 ms. On a hybrid host only
//! those v1 controllers are entered that a limit needs, before the program starts, all in one such wait. On a host
//! without v2 libcontainer does all of it, by the bundle's `cgroupsPath` and `resources`.

pub(crate) mod ceiling;
pub(crate) mod charge;
pub(crate) mod idle;
pub(crate) mod reclaim;
pub(crate) mod room;

pub(crate) mod blank;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use crate::halt;

/// Where container runtimes look for cgroups.
const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup of the shims, beside those of the Machines. No Machine has this name.
pub(crate) const SHIMS: &str = "shims";

/// One period of the CPU controller, the kernel's default.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// The kernel takes no smaller share of a period.
const CPU_QUOTA_US_MIN: u64 = 1000;

/// Limit of swap on v2, and its word for none.
const SWAP_LIMIT: &str = "memory.swap.max";
const UNLIMITED: &str = "max";

/// The directories that one Machine has, or would have, in each cgroup hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    v1: Vec<V1>,
    v2: Option<PathBuf>,
    v2_root: PathBuf,
}

/// Where this host's hierarchies are mounted: one look serves many Machines.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    v1: Vec<V1>,
    v2: Option<PathBuf>,
}

/// A directory in a v1 hierarchy, with the controllers that are mounted there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct V1 {
    dir: PathBuf,
    options: String,
}

/// What a Machine may use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Allowance {
    pub(crate) memory_bytes: Option<u64>,
    /// Swap beside the memory; only with `memory_bytes`.
    pub(crate) swap_bytes: Option<u64>,
    pub(crate) cpu_millis: Option<u32>,
    /// Part of the CPUs when others want them too; 1024 is what a program has by itself.
    pub(crate) cpu_shares: Option<u32>,
    pub(crate) pids: Option<u64>,
}

/// One limit, in the words of both versions.
#[derive(Debug, Clone)]
struct Limit {
    controller: &'static str,
    v1: (&'static str, u64),
    v2: (&'static str, String),
    need: Need,
}

/// What happens on a kernel that has the controller, but not the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// The start fails.
    Must,
    /// It is passed over: nothing of the kind can be used there.
    IfThere,
}

impl Limit {
    fn new(controller: &'static str, v1: (&'static str, u64), v2: (&'static str, String)) -> Self {
        Self { controller, v1, v2, need: Need::Must }
    }

    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        let written = write_existing(file, value);
        match (&written, self.need) {
            (Err(error), Need::IfThere) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => written.map_err(named("limit by", file)),
        }
    }
}

impl Allowance {
    /// Microseconds of CPU time per period.
    pub(crate) fn cpu_quota_us(self) -> Option<u64> {
        let quota = |millis| u64::from(millis) * CPU_PERIOD_US / 1000;
        self.cpu_millis.map(|millis| quota(millis).max(CPU_QUOTA_US_MIN))
    }

    /// Version 1 limits memory and swap together.
    pub(crate) fn memory_and_swap_bytes(self) -> Option<u64> {
        Some(self.memory_bytes?.saturating_add(self.swap_bytes?))
    }

    /// The kernel calls 100 what version 1 calls 1024.
    fn cpu_weight(self) -> Option<u64> {
        self.cpu_shares.map(|shares| (u64::from(shares) * 100).div_ceil(1024).clamp(1, 10_000))
    }

    /// In the order in which the kernel takes them: memory before memory and swap.
    fn limits(self) -> impl Iterator<Item = Limit> {
        let memory = self.memory_bytes.map(|bytes| {
            let v1 = ("memory.limit_in_bytes", bytes);
            Limit::new("memory", v1, ("memory.max", bytes.to_string()))
        });
        let swap = self.memory_and_swap_bytes().zip(self.swap_bytes).map(|(both, swap)| {
            let v1 = ("memory.memsw.limit_in_bytes", both);
            let limit = Limit::new("memory", v1, ("memory.swap.max", swap.to_string()));
            Limit { need: Need::IfThere, ..limit }
        });
        let quota = self.cpu_quota_us().map(|quota| {
            let v2 = ("cpu.max", format!("{quota} {CPU_PERIOD_US}"));
            Limit::new("cpu", ("cpu.cfs_quota_us", quota), v2)
        });
        let shares = self.cpu_shares.zip(self.cpu_weight()).map(|(shares, weight)| {
            let v2 = ("cpu.weight", weight.to_string());
            Limit::new("cpu", ("cpu.shares", u64::from(shares)), v2)
        });
        let pids = self
            .pids
            .map(|pids| Limit::new("pids", ("pids.max", pids), ("pids.max", pids.to_string())));
        [memory, swap, quota, shares, pids].into_iter().flatten()
    }
}

/// A v2 cgroup that is ready for its first process.
#[derive(Debug)]
pub(crate) struct Leaf {
    fd: OwnedFd,
    dir: PathBuf,
    root: PathBuf,
}

/// What another process needs to thaw a Machine without asking anybody, and to know whether it works.
#[derive(Debug)]
pub struct Freezer {
    /// Open for writing.
    pub file: OwnedFd,
    /// What to write there.
    pub thaw: &'static str,
    /// Open for reading: `cpu.stat` (v2) or `cpuacct.usage` (v1), where there is one.
    pub cpu: Option<OwnedFd>,
}

/// Cgroups that a process is to enter, opened before they are out of sight.
#[derive(Debug)]
pub(crate) struct Entrances(Vec<File>);

impl Entrances {
    /// For a process that is in its cgroups by birth.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// Moves the calling process into one of them, so that the wait for all processors is over, or on its way, when
    /// [`Self::enter`] comes. For a child that has nothing else to do.
    pub(crate) fn warm_up(&self) {
        if let Some(Err(error)) = self.0.first().map(|mut file| file.write_all(b"0")) {
            eprintln!("could not enter a cgroup ahead: {error}");
        }
    }

    /// Moves the calling process into all of them.
    pub(crate) fn enter_oneself(self) -> io::Result<()> {
        self.0.into_iter().try_for_each(|mut file| file.write_all(b"0"))
    }

    /// Moves a process into all of them. The first move waits for all processors, the others find that done.
    pub(crate) fn enter(self, pid: Pid) -> io::Result<()> {
        let pid = pid.as_raw_nonzero().to_string();
        self.0.into_iter().try_for_each(|mut file| file.write_all(pid.as_bytes()))
    }
}

impl Leaf {
    /// For `sys::fork_into`.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `act` while a container runtime sees the v2 tree alone, and a plain file where it would move processes into
    /// this leaf: they are in it already. The caller has a mount namespace of its own.
    pub(crate) fn shown_alone<T>(&self, sink: &Path, act: impl FnOnce() -> T) -> io::Result<T> {
        let procs = self.dir.join("cgroup.procs");
        File::create(sink).map_err(named("make", sink))?;
        rustix::mount::mount_bind(sink, &procs).map_err(named("cover", &procs))?;
        // With what is mounted below, the plain file.
        let root = Path::new(ROOT);
        rustix::mount::mount_bind_recursive(&self.root, root).map_err(named("cover", root))?;
        let done = act();
        let uncover = |path: &Path| {
            rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(named("uncover", path))
        };
        uncover(root)?;
        uncover(&procs)?;
        Ok(done)
    }
}

impl Hierarchies {
    /// Looks at what is mounted now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn find() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None };
        for line in mountinfo.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else { continue };
            let Some(root) = mount.split(' ').nth(4) else { continue };
            let (dir, kind) = (PathBuf::from(root), kind.split(' ').collect::<Vec<_>>());
            match kind[..] {
                ["cgroup", _, options] if found.v1.iter().all(|known| known.dir != dir) => {
                    found.v1.push(V1 { dir, options: options.to_owned() });
                }
                ["cgroup2", ..] if found.v2.is_none() => found.v2 = Some(dir),
                _ => {}
            }
        }
        found
    }

    /// The cgroups of this path, relative to the roots.
    pub(crate) fn at(&self, path: &Path) -> Cgroups {
        let below = |v1: &V1| V1 { dir: v1.dir.join(path), options: v1.options.clone() };
        Cgroups {
            v1: self.v1.iter().map(below).collect(),
            v2: self.v2.as_ref().map(|root| root.join(path)),
            v2_root: self.v2.clone().unwrap_or_default(),
        }
    }
}

impl Cgroups {
    /// Finds this host's hierarchies. `path` is relative to their roots.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        Ok(Hierarchies::find()?.at(path))
    }

    /// The v2 cgroup of the shims below this parent, made if it is not there. `None` on a host without v2.
    pub(crate) fn of_shims(parent: &str) -> io::Result<Option<OwnedFd>> {
        let Some(dir) = Self::find(&Path::new(parent).join(SHIMS))?.v2 else { return Ok(None) };
        fs::create_dir_all(&dir).map_err(named("make", &dir))?;
        let opened = File::open(&dir).map_err(named("open", &dir))?;
        Ok(Some(opened.into()))
    }

    /// Makes the v2 leaf and sets the limits that v2 can set. `None` on a host without v2.
    pub(crate) fn prepare(&self, allowance: Allowance) -> io::Result<Option<Leaf>> {
        let Some(dir) = &self.v2 else { return Ok(None) };
        fs::create_dir_all(dir)?;
        for limit in allowance.limits().filter(|limit| self.v1_for(limit).is_none()) {
            if !self.v2_has(limit.controller) {
                // The doctor says so; a Machine without a limit is better than none.
                eprintln!("no limit of {}: this host has no such controller", limit.controller);
                continue;
            }
            self.enable(limit.controller, dir)?;
            limit.write(&dir.join(limit.v2.0), &limit.v2.1)?;
        }
        let (root, fd) = (self.v2_root.clone(), File::open(dir)?.into());
        Ok(Some(Leaf { fd, dir: dir.clone(), root }))
    }

    fn v2_has(&self, controller: &str) -> bool {
        let known = fs::read_to_string(self.v2_root.join("cgroup.controllers"));
        known.is_ok_and(|names| names.split_ascii_whitespace().any(|name| name == controller))
    }

    /// Hands a controller down from the root to the parent of `dir`.
    fn enable(&self, controller: &str, dir: &Path) -> io::Result<()> {
        let below_root = dir.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.v2_root));
        let mut parents: Vec<_> = below_root.collect();
        parents.reverse();
        parents.iter().try_for_each(|parent| {
            fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))
        })
    }

    fn v1_for(&self, limit: &Limit) -> Option<&V1> {
        let named = |option: &str| option == limit.controller;
        self.v1.iter().find(|v1| v1.options.split(',').any(named))
    }

    /// Makes the cgroups for the limits that only v1 can set on this host, and sets them.
    pub(crate) fn prepare_v1(&self, allowance: Allowance) -> io::Result<Entrances> {
        let mut entered: Vec<&Path> = Vec::new();
        for limit in allowance.limits() {
            let Some(v1) = self.v1_for(&limit) else { continue };
            fs::create_dir_all(&v1.dir)?;
            limit.write(&v1.dir.join(limit.v1.0), &limit.v1.1.to_string())?;
            if !entered.contains(&v1.dir.as_path()) {
                entered.push(&v1.dir);
            }
        }
        let open = |dir: &Path| OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
        entered.into_iter().map(open).collect::<io::Result<_>>().map(Entrances)
    }

    /// For a process that joins a Machine which is there already: its v2 cgroup, to be born in, and the v1 cgroups that
    /// it has, to be entered.
    pub(crate) fn open(&self) -> io::Result<(Option<OwnedFd>, Entrances)> {
        let leaf = self.v2.as_ref().map(File::open).transpose()?.map(OwnedFd::from);
        let mut files = Vec::new();
        for dir in self.v1_dirs() {
            match OpenOptions::new().write(true).open(dir.join("cgroup.procs")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => files.push(opened?),
            }
        }
        Ok((leaf, Entrances(files)))
    }

    /// Whether more processes are inside than may be: one that is moved in, as into v1, is not refused by the kernel.
    pub(crate) fn is_overfull(&self) -> bool {
        let read = |dir: &PathBuf, name: &str| fs::read_to_string(dir.join(name)).ok();
        let over = |dir: &PathBuf| {
            let max: Option<u64> = read(dir, "pids.max")?.trim().parse().ok();
            let current: u64 = read(dir, "pids.current")?.trim().parse().ok()?;
            Some(max? < current)
        };
        self.v1_dirs().chain(&self.v2).any(|dir| over(dir) == Some(true))
    }

    fn v1_dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().map(|v1| &v1.dir)
    }

    /// Host process ids of everything in the Machine.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let dirs = self.v2.iter().chain(self.v1_dirs());
        for dir in dirs {
            let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            if !pids.is_empty() {
                return pids.lines().filter_map(|line| line.parse().ok()).collect();
            }
        }
        Vec::new()
    }

    /// How often the kernel killed something here for lack of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v1 = self.v1_dirs().map(|dir| dir.join("memory.oom_control"));
        let v2 = self.v2.iter().map(|dir| dir.join("memory.events"));
        let texts = v1.chain(v2).filter_map(|file| fs::read_to_string(file).ok());
        texts.filter_map(|text| counter(&text, "oom_kill")).max().unwrap_or(0)
    }

    /// Asks for everything in the Machine to stop where it is; [`Self::is_frozen`] tells when it has. The sockets
    /// stay as they are, the kernel goes on accepting and acknowledging for them.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        if let Some(leaf) = &self.v2 {
            match write_existing(&leaf.join("cgroup.freeze"), "1") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        match self.freezer_state() {
            Some(freezer) => write_existing(&freezer, "FROZEN"),
            None => halt::stop(|| self.pids()),
        }
    }

    /// Whether nothing of the Machine runs any more because of [`Self::freeze`].
    pub(crate) fn is_frozen(&self) -> io::Result<bool> {
        if let Some(leaf) = &self.v2 {
            let events = fs::read_to_string(leaf.join("cgroup.events"))?;
            if let Some(frozen) = counter(&events, "frozen") {
                return Ok(frozen == 1);
            }
        }
        match self.freezer_state() {
            Some(freezer) => Ok(fs::read_to_string(freezer)?.trim_end() == "FROZEN"),
            None => Ok(halt::are_stopped(&self.pids())),
        }
    }

    /// Calls off a [`Self::freeze`] that is still under way; says whether it had ended before.
    pub(crate) fn settle_freeze(&self) -> io::Result<bool> {
        if self.is_left_alone() {
            return Ok(false);
        }
        let frozen = self.is_frozen()?;
        if !frozen {
            self.thaw()?;
        }
        Ok(frozen)
    }

    /// Whether v2 has a freezer, and nobody asked it to freeze: then there is nothing to call off.
    fn is_left_alone(&self) -> bool {
        let asked = self.v2.as_ref().map(|leaf| fs::read_to_string(leaf.join("cgroup.freeze")));
        asked.is_some_and(|asked| asked.is_ok_and(|asked| asked.trim_end() == "0"))
    }

    /// Opens what [`Self::freeze`] writes to. Of no use for a later run, whose cgroups are new ones.
    pub(crate) fn freezer(&self) -> io::Result<Freezer> {
        let (file, thaw) = match &self.v2 {
            Some(leaf) => (leaf.join("cgroup.freeze"), "0"),
            None => (self.freezer_state().ok_or(io::ErrorKind::Unsupported)?, "THAWED"),
        };
        let file = OpenOptions::new().write(true).open(file)?.into();
        let v2 = self.v2.iter().map(|leaf| leaf.join("cpu.stat"));
        let v1 = self.v1_dirs().map(|dir| dir.join("cpuacct.usage"));
        let cpu = v2.chain(v1).find_map(|file| File::open(file).ok()).map(OwnedFd::from);
        Ok(Freezer { file, thaw, cpu })
    }

    fn freezer_state(&self) -> Option<PathBuf> {
        let freezer = self.v1.iter().find(|v1| v1.options.split(',').any(|it| it == "freezer"));
        freezer.map(|v1| v1.dir.join("freezer.state")).filter(|file| file.exists())
    }

    /// Lets a frozen Machine go on.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        for dir in self.v1_dirs() {
            write_if_there(&dir.join("freezer.state"), "THAWED")?;
        }
        let v2 = self.v2.iter().map(|leaf| leaf.join("cgroup.freeze")).find(|file| file.exists());
        match v2 {
            Some(file) => write_if_there(&file, "0"),
            None if self.freezer_state().is_none() => halt::resume(&self.pids()),
            None => Ok(()),
        }
    }

    /// Of a test: a directory in place of one of v2.
    #[cfg(test)]
    pub(crate) fn of_test(dir: &Path) -> Self {
        Self { v1: Vec::new(), v2: Some(dir.to_owned()), v2_root: dir.to_owned() }
    }

    /// The Machine's own limit of swap, if it has one. Only v2 has a limit that keeps memory from going to swap: v1
    /// limits memory and swap together, and moving from one to the other changes nothing of that sum.
    pub(crate) fn swap_limit(&self) -> Option<String> {
        let text = fs::read_to_string(self.v2.as_ref()?.join(SWAP_LIMIT)).ok()?;
        Some(text.trim_end().to_owned()).filter(|limit| limit != UNLIMITED)
    }

    /// Lets all of its memory go to swap.
    pub(crate) fn lift_swap_limit(&self) -> io::Result<()> {
        self.set_swap_limit(UNLIMITED)
    }

    /// What is in swap beyond the limit stays there; nothing more goes.
    pub(crate) fn set_swap_limit(&self, limit: &str) -> io::Result<()> {
        let Some(leaf) = &self.v2 else { return Ok(()) };
        write_if_there(&leaf.join(SWAP_LIMIT), limit)
    }

    /// Sends SIGKILL to everything in the Machine, in every way that there is.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let by_kernel = self.kill_by_kernel();
        let listed = self.kill_listed();
        self.let_die().and(by_kernel).and(listed)
    }

    /// The same of one whose PID 1 was killed: what has more processes than turns on its CPUs ends at once too.
    pub(crate) fn kill_rest(&self) -> io::Result<()> {
        let killed = match self.kill_by_kernel() {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => self.kill_listed(),
        };
        self.let_die().and(killed)
    }

    /// Whether the kernel has done that by itself: v2 can, since Linux 5.14.
    fn kill_by_kernel(&self) -> io::Result<bool> {
        let Some(leaf) = &self.v2 else { return Ok(false) };
        match write_existing(&leaf.join("cgroup.kill"), "1") {
            Err(error) if is_gone(&error) => Ok(false),
            done => done.map(|()| true),
        }
    }

    fn kill_listed(&self) -> io::Result<()> {
        for pid in self.pids().into_iter().filter_map(Pid::from_raw) {
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Lets what was killed go on if it is frozen, and have the CPU time that it takes to die: a v1-frozen process keeps
    /// SIGKILL pending, and so does one that waits for the next part of its CPUs, of which each of thousands gets little.
    fn let_die(&self) -> io::Result<()> {
        let v1 = self.v1_dirs().map(|dir| (dir.join("cpu.cfs_quota_us"), "-1"));
        let v2 = self.v2.iter().map(|leaf| (leaf.join("cpu.max"), UNLIMITED));
        let lifted = v1.chain(v2).map(|(file, none)| write_if_there(&file, none));
        lifted.fold(self.thaw(), Result::and)
    }

    /// Removes the directories. Fails with `ResourceBusy` while
    /// processes are inside.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for dir in self.v1_dirs().chain(&self.v2) {
            remove_dir(dir)?;
        }
        Ok(())
    }
}

/// Names the step that failed. The error's kind stays.
fn named<E: Into<io::Error>>(doing: &str, object: &Path) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("could not {doing} {}: {error}", object.display()))
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Never creates the file: in a cgroup that lacks it the kernel answers that with "permission denied".
fn write_existing(file: &Path, value: &str) -> io::Result<()> {
    let opened = OpenOptions::new().write(true).open(file);
    opened.and_then(|mut file| file.write_all(value.as_bytes()))
}

fn write_if_there(file: &Path, value: &str) -> io::Result<()> {
    match write_existing(file, value) {
        Err(error) if !is_gone(&error) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether that is because there is no such file, or the cgroup was removed behind its opening.
fn is_gone(error: &io::Error) -> bool {
    let removed = Some(rustix::io::Errno::NODEV.raw_os_error());
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == removed
}

fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
27 25 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
broken line";

    #[test]
    fn a_hybrid_host_has_both_kinds() {
        let found = Hierarchies::parse(HYBRID).at(Path::new("perch/m1"));
        let pids = V1 { dir: "/sys/fs/cgroup/pids/perch/m1".into(), options: "rw,pids".into() };
        assert_eq!(found.v1, [pids]);
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/perch/m1")));
    }

    #[test]
    fn a_limit_is_set_by_the_version_that_has_its_controller() {
        let found = Hierarchies::parse(HYBRID).at(Path::new("perch/m1"));
        let allowance = Allowance { memory_bytes: Some(1), pids: Some(2), ..Allowance::default() };
        let by_v1: Vec<_> =
            allowance.limits().map(|limit| found.v1_for(&limit).is_some()).collect();
        assert_eq!(by_v1, [false, true]);
    }

    #[test]
    fn both_versions_are_told_the_same_in_their_own_words() {
        let allowance = Allowance {
            memory_bytes: Some(1000),
            swap_bytes: Some(500),
            cpu_millis: Some(500),
            cpu_shares: Some(64),
            pids: Some(7),
        };
        let v1: Vec<_> = allowance.limits().map(|limit| limit.v1).collect();
        let expected = [
            ("memory.limit_in_bytes", 1000),
            ("memory.memsw.limit_in_bytes", 1500),
            ("cpu.cfs_quota_us", 50_000),
            ("cpu.shares", 64),
            ("pids.max", 7),
        ];
        assert_eq!(v1, expected);
        let v2: Vec<_> = allowance.limits().map(|limit| limit.v2).collect();
        let v2: Vec<_> = v2.iter().map(|(file, value)| (*file, value.as_str())).collect();
        let expected = [
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "7"),
            ("pids.max", "7"),
        ];
        assert_eq!(v2, expected);
        assert_eq!(Allowance { swap_bytes: Some(1), ..Allowance::default() }.limits().count(), 0);
    }

    #[test]
    fn a_share_of_cpu_is_never_too_small_for_the_kernel() {
        let share = |cpu_millis| Allowance { cpu_millis, ..Allowance::default() }.cpu_quota_us();
        assert_eq!(share(Some(1500)), Some(150_000));
        assert_eq!(share(Some(1)), Some(1000));
        assert_eq!(share(None), None);
        let weight = |shares| Allowance { cpu_shares: Some(shares), ..Allowance::default() };
        assert_eq!(weight(1024).cpu_weight(), Some(100));
        assert_eq!(weight(1).cpu_weight(), Some(1));
    }

    /// Cgroups of a host without any freezer, in which the kernel lists these processes.
    fn without_freezer(dir: &Path, pids: &str) -> io::Result<Cgroups> {
        fs::write(dir.join("cgroup.procs"), pids)?;
        let v1 = V1 { dir: dir.to_owned(), options: "rw,pids".to_owned() };
        Ok(Cgroups { v1: vec![v1], v2: None, v2_root: PathBuf::new() })
    }

    fn children_of(pid: u32) -> Vec<i32> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
    }

    #[test]
    fn without_a_freezer_all_processes_are_stopped_by_signals() -> io::Result<()> {
        let dir = crate::scratch_dir("halt")?;
        let mut child =
            std::process::Command::new("sh").args(["-c", "sleep 600 & wait"]).spawn()?;
        while children_of(child.id()).is_empty() {
            std::thread::yield_now();
        }
        let all = [vec![child.id().cast_signed()], children_of(child.id())].concat();
        let list: String = all.iter().map(|pid| format!("{pid}\n")).collect();
        let cgroups = without_freezer(&dir, &list)?;
        assert!(!cgroups.is_frozen()?);
        cgroups.freeze()?;
        assert!(cgroups.is_frozen()?);
        cgroups.thaw()?;
        assert!(!cgroups.is_frozen()?);
        cgroups.freeze()?;
        // As the server does: a stopped process dies at once.
        cgroups.kill()?;
        child.wait()?;
        let gone = without_freezer(&dir, "")?;
        assert!(!gone.is_frozen()?, "what is gone is not frozen");
        assert!(gone.freeze().is_err());
        fs::remove_dir_all(dir)
    }

    #[test]
    fn a_freeze_under_way_is_called_off_and_one_that_has_ended_stays() -> io::Result<()> {
        let dir = crate::scratch_dir("settle")?;
        let cgroups = Cgroups { v1: Vec::new(), v2: Some(dir.clone()), v2_root: PathBuf::new() };
        let ask = dir.join("cgroup.freeze");
        for (events, ended, asked) in [("frozen 1\n", true, "1"), ("frozen 0\n", false, "0")] {
            fs::write(&ask, "1")?;
            fs::write(dir.join("cgroup.events"), events)?;
            assert_eq!(cgroups.settle_freeze()?, ended);
            assert_eq!(fs::read_to_string(&ask)?, asked);
        }
        fs::remove_dir_all(dir)
    }

    #[test]
    fn where_nobody_asked_for_a_freeze_there_is_nothing_to_call_off() -> io::Result<()> {
        let dir = crate::scratch_dir("left-alone")?;
        // Whatever else is looked at would be missed.
        fs::write(dir.join("cgroup.freeze"), "0\n")?;
        assert!(!Cgroups::of_test(&dir).settle_freeze()?);
        fs::remove_dir_all(dir)
    }

    #[test]
    fn who_is_forked_meanwhile_is_stopped_too() -> io::Result<()> {
        let script = "while :; do sleep 0.001 & wait; done";
        let mut child = std::process::Command::new("sh").args(["-c", script]).spawn()?;
        let own = child.id();
        let all = || [vec![own.cast_signed()], children_of(own)].concat();
        for _ in 0..20 {
            halt::stop(all)?;
            assert!(halt::are_stopped(&all()));
            halt::resume(&all())?;
        }
        child.kill()?;
        child.wait().map(drop)
    }

    #[test]
    fn a_counter_is_read_by_its_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(counter(text, "oom_kill"), Some(3));
        assert_eq!(counter("oom_kill_disable 0\n", "oom_kill"), None);
    }
}
