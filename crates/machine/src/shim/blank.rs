//! A shim that knows no Machine yet: `perch blank PARENT`. It has done what needs no specification, and becomes a shim
//! like any other when the launcher gives it a Machine's directory.
//!
//! ```text
//!  blank ─► parked child enters new v1 cgroups ─► "blank" ─┬─ order ─► cgroups get the Machine's name ─► as any start, but:
//!                                                          │            libcontainer runs in a child of the parked one
//!                                                          └─ line closed, or the parked child dead ─► all is removed
//! ```
//!
//! The parked child is what a blank is for: to enter a v1 cgroup takes as long as all the rest of a start, and children
//! inherit it. It has the shim's descriptors, so that it knows those that are opened later; the process that it forks is
//! the shim's child and born in the Machine's v2 cgroup, and the parked one ends before the program is executed. Where
//! nothing has to be entered ahead there is none.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use perch_core::fault::{self, Point};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    Outlet, Parent, ShimError, begin_session, born_among_shims, chain, container_pid, doing, run,
    run_container, usual_priority, usual_umask,
};
use crate::cgroup::blank::Unnamed;
use crate::cgroup::{Cgroups, Leaf};
use crate::launch::{Answer, Fault, Order, ProcessId, Way};
use crate::{stage, sys};

/// Longest order: a path, and the words around it.
const ORDER_BYTES_MAX: usize = 8 * 1024;
/// Longest packet between a blank and its parked child.
const WORD_BYTES_MAX: usize = 1024;
/// What the parked child says when it is where it should be.
const INSIDE: &str = "inside";

/// Entry point of `perch blank PARENT`. Call it first thing in `main`, before any thread or runtime exists: standard output
/// is a socket to the launcher. `parent` is where the cgroups of its Machines are.
pub fn main(parent: &str) -> ExitCode {
    let Ok(line) = Outlet::take() else { return ExitCode::FAILURE };
    usual_umask();
    usual_priority();
    born_among_shims(Ok(parent), line, |line| wait(parent, line))
}

fn wait(parent: &str, mut line: Outlet) -> ExitCode {
    begin_session();
    let ordered = Blank::make(parent).and_then(|blank| blank.ordered(&line));
    match ordered {
        Ok(Some((order, parked))) => {
            show(&order.dir);
            fault::pass(Point::ShimBlankOrdered);
            run(&order.dir, Way::Blank, line, parked)
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            line.send(&Answer::Failed { reason: chain(&error), fault: Fault::Host });
            ExitCode::FAILURE
        }
    }
}

/// Lets people see whose shim it is.
fn show(dir: &Path) {
    let own = std::env::args_os().next().unwrap_or_default();
    let words = [own.as_bytes(), b"shim", dir.as_os_str().as_bytes(), b""].join(&0);
    let map = crate::process::memory_map();
    if let Err(error) = map.and_then(|map| sys::show_arguments(words, map)) {
        eprintln!("could not show the machine's directory as an argument: {error}");
    }
}

/// What waits for an order.
struct Blank {
    /// The descriptors that init will know: nothing else may have them.
    reserved: [OwnedFd; 2],
    parked: Option<Parked>,
}

impl Blank {
    fn make(parent: &str) -> Result<Self, ShimError> {
        let null =
            || rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let reserved = null().and_then(|first| Ok([first, null()?]));
        let reserved = reserved.map_err(doing("open /dev/null"))?;
        let groups = Unnamed::make(parent).map_err(doing("make cgroups"))?;
        let parked = groups.map(Parked::park).transpose().map_err(doing("park a process"))?;
        Ok(Self { reserved, parked })
    }

    /// Waits for the order; `None` when none will come, and nothing is left.
    fn ordered(self, line: &Outlet) -> Result<Option<(Order, Option<Parked>)>, ShimError> {
        let own = ProcessId::of(rustix::process::getpid()).map_err(doing("know this process"))?;
        line.tell(&Answer::Blank(own));
        fault::pass(Point::ShimBlank);
        let Self { reserved, parked } = self;
        let pidfd = parked.as_ref().map(|parked| parked.pidfd.as_fd());
        if !comes_first(line, pidfd).map_err(doing("wait for an order"))? {
            return Ok(None);
        }
        let Some((order, [netns, words])) = receive(line).map_err(doing("read the order"))? else {
            return Ok(None);
        };
        // From here on as if it had been spawned for this Machine.
        rustix::stdio::dup2_stdin(&netns).map_err(doing("take the network namespace"))?;
        rustix::stdio::dup2_stderr(&words).map_err(doing("take its own log"))?;
        drop((netns, words, reserved));
        Ok(Some((order, parked)))
    }
}

/// Whether something is on the line before this process ends.
fn comes_first(line: &Outlet, pidfd: Option<BorrowedFd<'_>>) -> io::Result<bool> {
    let Some(line) = &line.0 else { return Ok(false) };
    let fds = [Some(line.as_fd()), pidfd].into_iter().flatten();
    let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(fds[1..].iter().all(|fd| fd.revents().is_empty())),
        }
    }
}

/// The order and what comes with it; `None` when the line is closed.
fn receive(line: &Outlet) -> io::Result<Option<(Order, [OwnedFd; 2])>> {
    let Some(line) = &line.0 else { return Ok(None) };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut parcel = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; ORDER_BYTES_MAX];
    let mut into = [IoSliceMut::new(&mut bytes)];
    // What is sent with descriptors is never read together with what follows it.
    let got = rustix::net::recvmsg(line, &mut into, &mut parcel, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut found = Vec::new();
    for message in parcel.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    if got == 0 {
        return Ok(None);
    }
    let found = found.try_into();
    let found = found.map_err(|_| io::Error::other("it came without its descriptors"))?;
    Ok(Some((serde_json::from_slice(&bytes[..got])?, found)))
}

/// A child in v1 cgroups that a Machine's processes are to inherit. Dropped, it dies, and the cgroups that no Machine has
/// go.
pub(super) struct Parked {
    child: Option<Pid>,
    pidfd: OwnedFd,
    line: OwnedFd,
    /// The child's end has the same number there.
    _far: OwnedFd,
    groups: Unnamed,
}

/// What a child of the parked one needs, as descriptors of the shim.
struct Errand {
    mounts: RawFd,
    netns: RawFd,
    leaf: RawFd,
    stdout: RawFd,
    stderr: RawFd,
    answer: RawFd,
}

impl Errand {
    fn packed(&self) -> Vec<u8> {
        let all = [self.mounts, self.netns, self.leaf, self.stdout, self.stderr, self.answer];
        all.into_iter().flat_map(RawFd::to_le_bytes).collect()
    }

    fn unpack(packet: &[u8]) -> Option<Self> {
        let (numbers, rest) = packet.as_chunks();
        let numbers: Vec<_> = numbers.iter().copied().map(RawFd::from_le_bytes).collect();
        let [mounts, netns, leaf, stdout, stderr, answer] = numbers[..] else { return None };
        rest.is_empty().then_some(Self { mounts, netns, leaf, stdout, stderr, answer })
    }
}

impl Parked {
    fn park(groups: Unnamed) -> io::Result<Self> {
        let (line, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let shim = rustix::process::getpid();
        let child = sys::fork_sharing_files(|| stay(far.as_fd(), &groups, shim))?;
        let pidfd = rustix::process::pidfd_open(child, PidfdFlags::empty())?;
        let parked = Self { child: Some(child), pidfd, line, _far: far, groups };
        match parked.hear()?.as_str() {
            INSIDE => Ok(parked),
            complaint => Err(io::Error::other(complaint.to_owned())),
        }
    }

    /// What the child says next. Its end says nothing on the socket, as this process has both ends of it.
    fn hear(&self) -> io::Result<String> {
        let fds = [self.line.as_fd(), self.pidfd.as_fd()];
        let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        while let Err(error) = poll(&mut fds, None) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let mut word = [0; WORD_BYTES_MAX];
        match rustix::net::recv(&self.line, &mut word, RecvFlags::DONTWAIT) {
            Ok((length, _)) => Ok(String::from_utf8_lossy(&word[..length]).into_owned()),
            Err(Errno::AGAIN) => Err(io::Error::other("the parked process has ended")),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives its cgroups to a Machine.
    pub(super) fn take_name(&mut self, machine: &Cgroups) -> Result<(), ShimError> {
        let named = self.groups.become_those_of(machine).map_err(doing("name the cgroups"));
        fault::pass(Point::ShimBlankNamed);
        if let Some(child) = self.child {
            fault::pass_by(Point::ParkedNamed, child.as_raw_nonzero().get());
        }
        named
    }

    /// Runs the container from a child of the parked one. PID 1 becomes a child of this process all the same.
    pub(super) fn run(
        mut self,
        leaf: &Leaf,
        netns: BorrowedFd<'_>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Pid, ShimError> {
        let (answer, answer_end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
                .map_err(doing("make a pipe"))?;
        let mounts = File::open("/proc/self/ns/mnt").map_err(doing("open the mount namespace"))?;
        let errand = Errand {
            mounts: mounts.as_raw_fd(),
            netns: netns.as_raw_fd(),
            leaf: leaf.as_fd().as_raw_fd(),
            stdout: stdout.as_raw_fd(),
            stderr: stderr.as_raw_fd(),
            answer: answer_end.as_raw_fd(),
        };
        let ended = leaf.shown_alone(Path::new("cgroup.procs"), || {
            let child = self.send(&errand).map_err(doing("be born in the cgroup"))?;
            let waited = rustix::process::waitpid(Some(child), WaitOptions::empty());
            waited.map_err(doing("wait for the container runtime"))
        });
        let ended = ended.map_err(doing("show the container runtime its cgroup"))??;
        let pid = container_pid(answer, ended)?;
        // It is not the Machine's, and its limits come next.
        let reaped = self.reap().map_err(doing("wait for the parked process"));
        drop((stdout, stderr));
        fault::pass(Point::ShimBlankBorn);
        reaped.map(|()| pid)
    }

    /// Sends the child on its errand; answers with the process that it forked.
    fn send(&self, errand: &Errand) -> io::Result<Pid> {
        rustix::net::send(&self.line, &errand.packed(), SendFlags::NOSIGNAL)?;
        let answer = self.hear()?;
        let pid = answer.parse().ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| io::Error::other(answer))
    }

    fn reap(&mut self) -> io::Result<()> {
        if let Some(child) = self.child.take() {
            rustix::process::waitpid(Some(child), WaitOptions::empty())?;
        }
        Ok(())
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let Some(child) = self.child else { return };
        // It is not reaped yet, so the number is still its own; an error means that it has ended.
        let killed = rustix::process::kill_process(child, Signal::KILL);
        if let (Err(error), _) | (_, Err(error)) = (self.reap(), killed.map_err(io::Error::from)) {
            eprintln!("the parked process was gone already: {error}");
        }
    }
}

/// The parked child: its exit code. Until it has its errand it owns no descriptor.
fn stay(line: BorrowedFd<'_>, groups: &Unnamed, shim: Pid) -> i32 {
    let dies = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if dies.is_err() || rustix::process::getppid() != Some(shim) {
        return 1;
    }
    let inside = groups.enter_oneself();
    let word = inside.as_ref().map_or_else(ToString::to_string, |()| INSIDE.to_owned());
    if say(line, &word) != 0 || inside.is_err() {
        return 1;
    }
    let mut packet = [0; WORD_BYTES_MAX];
    let errand = rustix::net::recv(line, &mut packet, RecvFlags::empty());
    let errand = errand.ok().and_then(|(length, _)| Errand::unpack(&packet[..length]));
    let Some(errand) = errand else { return 1 };
    say(
        line,
        &fork(&errand).map_or_else(|error| chain(&error), |pid| pid.as_raw_nonzero().to_string()),
    )
}

fn say(line: BorrowedFd<'_>, word: &str) -> i32 {
    let word = &word.as_bytes()[..word.len().min(WORD_BYTES_MAX)];
    i32::from(rustix::net::send(line, word, SendFlags::NOSIGNAL).is_err())
}

/// Goes where the shim is, and forks a child of the shim that runs the container.
fn fork(errand: &Errand) -> Result<Pid, ShimError> {
    sys::unshare_files().map_err(doing("have descriptors of one's own"))?;
    let own = |number| sys::take_copy(number).map_err(doing("find a descriptor"));
    let (mounts, netns, leaf) = (own(errand.mounts)?, own(errand.netns)?, own(errand.leaf)?);
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(doing("enter the mount namespace"))?;
    stage::enter_network(netns.as_fd())?;
    std::env::set_current_dir(stage::STAGE).map_err(doing("enter the stage"))?;
    let (stdout, stderr, answer) = (own(errand.stdout)?, own(errand.stderr)?, own(errand.answer)?);
    let work = move || {
        if let Err(error) = crate::complaints::to_stderr() {
            eprintln!("could not watch the container runtime: {error}");
        }
        let made = run_container(stdout, stderr, Parent::CallersParent, |_| Ok(()));
        super::tell_pid(answer, made)
    };
    sys::fork_beside(leaf.as_fd(), work).map_err(doing("be born in the cgroup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_that_is_cut_is_none() {
        let errand = Errand { mounts: 5, netns: 6, leaf: 7, stdout: 8, stderr: 9, answer: 10 };
        let packed = errand.packed();
        assert_eq!(Errand::unpack(&packed).map(|it| (it.mounts, it.answer)), Some((5, 10)));
        for length in 0..packed.len() {
            assert!(Errand::unpack(&packed[..length]).is_none(), "{length}");
        }
    }
}
