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
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Signal, WaitOptions};

use super::{Keeper, Outlet, Report, ShimError, doing};
use crate::launch::{self, Answer, Fault};

/// What init waits for; it looks only whether there is something.
const GO: &[u8] = b"go";
/// More than the launcher ever says.
const WORD_BYTES_MAX: usize = 16;

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
}

impl Keeper {
    /// Waits until somebody needs the Machine; `None` when nobody will, and nothing of it is left.
    pub(super) fn wait_for_go(mut self, answer: &mut Outlet) -> Result<Option<Self>, ShimError> {
        let mut told = false;
        loop {
            match self.woken(answer).map_err(doing("wait for the launcher's word"))? {
                Woken::Ended => return Ok(self.end_unused(answer)),
                Woken::Reported => self.read_report(),
                Woken::Launcher if launcher_says_go(answer) => return self.go(answer),
                Woken::Launcher => return Ok(self.end_unused(answer)),
            }
            if self.waits && !told {
                told = true;
                answer.tell(&Answer::Armed);
                fault::pass(Point::ShimArmed);
                fault::pass_by(Point::InitArmed, self.pid.as_raw_nonzero().get());
            }
        }
    }

    fn woken(&self, answer: &Outlet) -> io::Result<Woken> {
        let Some(line) = &answer.0 else { return Ok(Woken::Ended) };
        let fds = [self.pidfd.as_fd(), self.report.as_fd(), line.as_fd()];
        let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
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
        self.remove_traces();
        // The lock of what is armed goes, that of a run is held.
        self.lock = lock;
        fault::pass(Point::ShimGateHeard);
        open(&self.report)?;
        fault::pass(Point::ShimGateOpened);
        fault::pass_by(Point::InitGateOpened, self.pid.as_raw_nonzero().get());
        Ok(Some(self))
    }

    /// Kills what waits and removes it. There was no run, so none is recorded.
    fn end_unused(&mut self, answer: &mut Outlet) -> Option<Self> {
        self.read_report();
        if let Err(error) = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            eprintln!("could not kill what waits: {error}");
        }
        if let Err(error) = rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
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
