//! `perch quickstart`: a private app goes to sleep and is woken by another app, before your eyes.
//!
//! It plays on a stage of its own (a network namespace and a directory), with the real server and
//! the real `fly`, and leaves the host as it was: see [`stage`] and [`guard`]. What is played is in [`script`].

pub(crate) mod guard;
mod image;
mod script;
mod stage;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use stage::Stage;

const USAGE: &str = "error: usage: perch quickstart [--once] [--dir DIR]\n";

/// What to do after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Stay up until Ctrl-C.
    Stay,
    /// Leave at once.
    Leave,
}

/// Entry point of `perch quickstart`.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let Some((ending, dir)) = parse(args) else { return crate::usage(USAGE) };
    match play(ending, dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

fn parse(args: &[OsString]) -> Option<(Ending, Option<PathBuf>)> {
    let mut ending = Ending::Stay;
    let mut dir = None;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.to_str()? {
            "--once" => ending = Ending::Leave,
            "--dir" => dir = Some(PathBuf::from(rest.next()?)),
            other => dir = Some(PathBuf::from(other.strip_prefix("--dir=")?)),
        }
    }
    Some((ending, dir))
}

fn play(ending: Ending, dir: Option<PathBuf>) -> anyhow::Result<()> {
    require_root()?;
    crate::doctor::require()?;
    let interrupt = Interrupt::watch()?;
    let stage = Stage::set(dir)?;
    // Ctrl-C also reaches the `fly` that plays just now; it ends, and with it the play.
    let played = script::play(&stage);
    if played.is_ok() && ending == Ending::Stay {
        script::invitation(&stage);
        interrupt.wait();
    }
    // The terminal may be gone.
    writeln!(std::io::stdout(), "\n==> Putting everything back").ok();
    let struck = stage.strike();
    played.and(struck)
}

/// Takes SIGINT, SIGTERM and SIGHUP over, so that what was made is put back first.
struct Interrupt {
    seen: std::sync::mpsc::Receiver<()>,
}

impl Interrupt {
    fn watch() -> anyhow::Result<Self> {
        let (sender, seen) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut int, mut term, mut hup) = {
            let _entered = runtime.enter();
            let [int, term, hup] =
                [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            (signal(int)?, signal(term)?, signal(hup)?)
        };
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
            });
            // Nobody listens when the play is over already.
            sender.send(()).ok();
        });
        Ok(Self { seen })
    }

    fn wait(self) {
        self.seen.recv().ok();
    }
}

/// Namespaces and cgroups need root; the answer is a line to copy.
fn require_root() -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let exe = std::env::current_exe().context("could not find this program's own path")?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    anyhow::bail!(
        "perch needs root for network namespaces and cgroups; run:\n\n  sudo {} {}\n",
        exe.display(),
        args.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str], expected: Option<(Ending, Option<&str>)>) {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        assert_eq!(parse(&args), expected.map(|(ending, dir)| (ending, dir.map(PathBuf::from))));
    }

    #[test]
    fn arguments_are_read_and_strangers_are_refused() {
        check(&[], Some((Ending::Stay, None)));
        check(&["--once", "--dir", "/d"], Some((Ending::Leave, Some("/d"))));
        check(&["--dir=/d"], Some((Ending::Stay, Some("/d"))));
        check(&["--dir"], None);
        check(&["--twice"], None);
    }
}
