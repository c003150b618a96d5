//! The gate before the program: open at once in a usual start, opened by the launcher's word in one that was made ready
//! ahead.
//!
//! ```text
//!  init: "waiting" ─► launcher: "armed" ─┬─ "go" ─► lock of a run ─► gate opens ─► as any run
//!                                        └─ line closed, or PID 1 dead ─► all of it is removed, nothing is written
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use perch_core::fault::{self, Point};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Signal, WaitOptions};

use super::{Keeper, Outlet, Report, ShimError, doing};
use crate::files;
use crate::launch::{self, Answer, Fault, ShimState};

/// What init waits for; it looks only whether there is something.
const GO: &[u8] = b"go";
/// More than the launcher ever says.
const WORD_BYTES_MAX: usize = 16;
/// The process that made init ends at about the time when init says that it waits; nothing tells of it. It is looked for
/// at most so often, with this pause.
const HELPER_LOOKS: u32 = 50;
const HELPER_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Lets init go on.
pub(super) fn open(report: &OwnedFd) -> Result<(), ShimError> {
    let sent = rustix::net::send(report, GO, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(doing("open the gate"))
}

/// What ends a wait.
#[derive(Debug, PartialEq, Eq)]
enum Woken {
    Ended,
    Reported,
    Launcher,
    ByNobody,
}

impl Keeper {
    /// Waits until somebody needs the Machine; `None` when nobody will, and nothing of it is left.
    pub(super) fn wait_for_go(mut self, answer: &mut Outlet) -> Result<Option<Self>, ShimError> {
        let mut told = false;
        let mut looks = HELPER_LOOKS;
        loop {
            let woken = self.woken(answer, (0 < looks).then_some(HELPER_PAUSE));
            match woken.map_err(doing("wait for the launcher's word"))? {
                Woken::ByNobody if self.reap() => looks = 0,
                Woken::ByNobody => looks -= 1,
                Woken::Ended => return Ok(self.end_unused(answer)),
                Woken::Reported => self.read_report(),
                Woken::Launcher if launcher_says_go(answer) => return self.go(answer),
                Woken::Launcher => return Ok(self.end_unused(answer)),
            }
            if self.waits && !told {
                told = true;
                if let Err(error) = self.prepare_introduction() {
                    self.end_unused(answer);
                    return Err(doing("write down what waits")(error));
                }
                answer.tell(&Answer::Armed);
                fault::pass(Point::ShimArmed);
                fault::pass_by(Point::InitArmed, self.pid.as_raw_nonzero().get());
            }
        }
    }

    fn woken(&self, answer: &Outlet, timeout: Option<Timespec>) -> io::Result<Woken> {
        let Some(line) = &answer.0 else { return Ok(Woken::Ended) };
        let fds = [self.pidfd.as_fd(), self.report.as_fd(), line.as_fd()];
        let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        loop {
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                Ok(0) => return Ok(Woken::ByNobody),
                polled => polled?,
            };
            let is_set = |fd: &PollFd<'_>| !fd.revents().is_empty();
            return Ok(match fds.each_ref().map(is_set) {
                // Before its end: what it said last is why.
                [false, true, _] => Woken::Reported,
                [true, ..] => Woken::Ended,
                [false, false, _] => Woken::Launcher,
            });
        }
    }

    /// From here on it is a run like any other: `spec.json` tells of it.
    fn go(mut self, answer: &mut Outlet) -> Result<Option<Self>, ShimError> {
        let lock = match launch::lock(&self.spec.dir) {
            Ok(lock) => lock,
            Err(error) => {
                self.end_unused(answer);
                return Err(doing("lock the machine's directory")(error));
            }
        };
        if answer.is_closed() {
            // A successor of the launcher may have given this run up already.
            return Ok(self.end_unused(answer));
        }
        fault::pass(Point::ShimGateHeard);
        if let Err(error) = launch::become_run(&self.spec.dir) {
            self.end_unused(answer);
            return Err(doing("make what waits the run")(error));
        }
        // The lock of what is armed goes, that of a run is held.
        self.lock = lock;
        open(&self.report)?;
        fault::pass(Point::ShimGateOpened);
        fault::pass_by(Point::InitGateOpened, self.pid.as_raw_nonzero().get());
        // While the program is executed: who waits for it finds out by connecting. That it cannot be is the run's end.
        self.introduce(answer);
        self.remove_traces();
        Ok(Some(self))
    }

    /// For the disk may be full when somebody waits for the run.
    fn prepare_introduction(&mut self) -> io::Result<()> {
        let state = ShimState::of_this_shim(self.spec.run, self.pid)?;
        files::write(&self.spec.dir, launch::ARMED_SHIM_FILE, &state)?;
        self.state = Some(state);
        Ok(())
    }

    fn introduce(&self, answer: &mut Outlet) {
        if let Some(state) = self.state {
            answer.send(&Answer::Started(state));
        }
        fault::pass(Point::ShimAnswered);
    }

    /// Kills what waits and removes it. There was no run, so none is recorded.
    fn end_unused(&mut self, answer: &mut Outlet) -> Option<Self> {
        self.read_report();
        if let Err(error) = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            eprintln!("could not kill what waits: {error}");
        }
        if self.status.is_none()
            && let Err(error) = rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
        {
            eprintln!("could not reap what waited: {error}");
        }
        self.reap();
        if let Err(error) = self.cgroups.remove() {
            eprintln!("could not remove the cgroups: {error}");
        }
        self.remove_traces();
        let last = match self.reported.take() {
            Some(Report::Failed(reason)) => Answer::Failed { reason, fault: Fault::Image },
            Some(_) | None => Answer::Disarmed,
        };
        answer.send(&last);
        None
    }

    fn remove_traces(&self) {
        if let Err(error) = launch::forget_armed(&self.spec.dir) {
            eprintln!("could not remove the traces of the wait: {error}");
        }
    }
}

/// Whether the launcher wants the program; else it has let go.
fn launcher_says_go(answer: &Outlet) -> bool {
    let Some(mut line): Option<&File> = answer.0.as_ref() else { return false };
    let mut word = [0; WORD_BYTES_MAX];
    matches!(line.read(&mut word), Ok(length) if 0 < length)
}
