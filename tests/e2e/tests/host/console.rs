//! `fly ssh console` at a real terminal, and without one.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::exec::{app, count, innermost};
use crate::stage::{AWAKE, SOON, on_host, private_app};

/// `fly` at a terminal of its own.
struct Session {
    outer: File,
    inner: File,
    fly: Child,
    seen: String,
}

impl Session {
    fn begin(host: &Host, args: &[&str]) -> Result<Self> {
        let outer = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&outer)?;
        unlockpt(&outer)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let inner = File::from(ioctl_tiocgptpeer(&outer, flags)?);
        let outer = File::from(outer);
        let mut session_of = Self::command(host, args);
        let fly = session_of
            .stdin(inner.try_clone()?)
            .stdout(inner.try_clone()?)
            .stderr(inner.try_clone()?);
        let session =
            Self { fly: fly.spawn().context("setsid")?, outer, inner, seen: String::new() };
        session.resize(24, 80)?;
        Ok(session)
    }

    /// With the terminal as its own, so that a new size is told to it.
    fn command(host: &Host, args: &[&str]) -> Command {
        let fly = host.fly_command(host.dir(), &[&["ssh", "console", "-a", "web"], args].concat());
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(fly.get_program()).args(fly.get_args());
        if let Some(dir) = fly.get_current_dir() {
            command.current_dir(dir);
        }
        for (name, value) in fly.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.outer, size)?)
    }

    fn keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.outer.write_all(keys.as_bytes())?)
    }

    /// Reads until this has appeared, and forgets what was before.
    fn until(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let mut fds = [PollFd::new(&self.outer, PollFlags::IN)];
            let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
            if poll(&mut fds, Some(&wait))? == 0 {
                ensure!(Instant::now() < deadline, "no {text:?} in {:?}", self.seen);
                continue;
            }
            let mut buffer = [0; 4096];
            match self.outer.read(&mut buffer)? {
                0 => bail!("ended without {text:?}: {:?}", self.seen),
                length => self.seen.push_str(&String::from_utf8_lossy(&buffer[..length])),
            }
        }
    }

    fn is_raw(&self) -> Result<bool> {
        Ok(!tcgetattr(&self.inner)?.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// The exit code, after which the terminal is as it was.
    fn ended(mut self) -> Result<Option<i32>> {
        let code = self.fly.wait()?.code();
        ensure!(!self.is_raw()?, "the terminal was left raw");
        Ok(code)
    }
}

#[test]
fn a_shell_at_a_terminal_knows_its_size_and_passes_its_exit_code_on() {
    on_host(|host| {
        let id = app(host, AWAKE)?;
        let mut session = Session::begin(host, &[])?;
        session.until("complete")?;
        session.until("# ")?;
        ensure!(session.is_raw()?, "keys are for the Machine");
        session.keys("stty size; echo $TERM $(tty) $(id -u)\n")?;
        session.until("24 80\r\n")?;
        session.until("/dev/pts/0 0\r\n")?;
        session.resize(40, 100)?;
        session.keys("while ! stty size | grep '40 100'; do :; done\n")?;
        session.until("\r\n40 100\r\n")?;
        // Ctrl-C is the Machine's: it ends what runs there, and not `fly`.
        session.keys("busybox sleep 1000\n")?;
        wait_until("its start", SOON, || Ok((count(host, &id, "sleep 1000")? == 1).then_some(())))?;
        session.keys("\x03")?;
        session.until("# ")?;
        session.keys("echo still he''re; exit 5\n")?;
        session.until("still here")?;
        ensure!(session.ended()? == Some(5));
        Ok(())
    });
}

#[test]
fn a_terminal_comes_back_and_the_shell_goes_however_the_caller_ends() {
    on_host(|host| {
        let id = app(host, AWAKE)?;
        for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
            let mut session = Session::begin(host, &["-C", "busybox sleep 1000", "--pty"])?;
            wait_until("its start", SOON, || {
                Ok((count(host, &id, "sleep 1000")? == 1 && session.is_raw()?).then_some(()))
            })?;
            kill_process(innermost(session.fly.id())?, signal)?;
            if signal == Signal::KILL {
                session.fly.wait()?;
            } else {
                let code = session.ended()?;
                ensure!(code == Some(128 + signal.as_raw()), "{signal:?}: {code:?}");
            }
            wait_until("the end of what it ran", SOON, || {
                Ok((count(host, &id, "sleep 1000")? == 0).then_some(()))
            })?;
        }
        let mut session = Session::begin(host, &[])?;
        session.until("# ")?;
        host.fly(&["machine", "stop", &id, "-w", "30s"])?.ok()?;
        ensure!(session.ended()?.is_some_and(|code| code != 0), "its Machine was stopped");
        Ok(())
    });
}

#[test]
fn pipes_carry_everything_and_a_slow_reader_slows_nobody_else() {
    on_host(|host| {
        let id = app(host, AWAKE)?;
        let console = |args: &[&str]| {
            let args = [&["ssh", "console", "-q", "-a", "web", "--machine", &id], args].concat();
            host.fly_command(host.dir(), &args)
        };
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        let mut echo =
            console(&["-C", "busybox cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (mut input, given) = (echo.stdin.take().context("a pipe")?, bytes.clone());
        let writer = std::thread::spawn(move || input.write_all(&given));
        let echoed = echo.wait_with_output()?;
        ensure!(writer.join().is_ok_and(|written| written.is_ok()), "it did not read all");
        ensure!(echoed.status.success() && echoed.stdout == bytes, "{} bytes", echoed.stdout.len());

        let failed = console(&["-C", "sh -c 'echo out; echo err >&2; exit 7'"])
            .stdin(Stdio::null())
            .output()?;
        ensure!(failed.status.code() == Some(7), "{failed:?}");
        ensure!(failed.stdout == b"out\n" && failed.stderr == b"err\n", "{failed:?}");
        let as_nobody = console(&["-C", "busybox id -u", "-u", "65534"]).output()?;
        ensure!(as_nobody.stdout == b"65534\n", "{as_nobody:?}");

        let mut slow = console(&["-C", "busybox yes"]).stdout(Stdio::piped()).spawn()?;
        let mut first = [0; 2];
        slow.stdout.as_mut().context("a pipe")?.read_exact(&mut first)?;
        for _ in 0..5 {
            let ran = host.fly(&["machine", "exec", &id, "busybox echo on"])?.ok()?;
            ensure!(ran == "on\n", "{ran}");
        }
        drop(slow.stdout.take());
        slow.wait()?;
        wait_until("the end of what nobody reads", SOON, || {
            Ok((count(host, &id, "yes")? == 0).then_some(()))
        })
    });
}

#[test]
fn an_image_without_a_shell_says_what_to_do() {
    on_host(|host| {
        private_app(host, "web", AWAKE)?;
        let refused = host.fly(&["ssh", "console", "-a", "web"])?.fails()?;
        ensure!(refused.contains("has no shell") && refused.contains("-C"), "{refused}");
        let missing = host.fly(&["ssh", "console", "-a", "web", "-C", "ls"])?.fails()?;
        ensure!(missing.contains("was not found in PATH"), "{missing}");
        let unknown = host.fly(&["ssh", "console", "-a", "web", "-u", "who"])?.fails()?;
        ensure!(unknown.contains("who"), "{unknown}");
        Ok(())
    });
}
