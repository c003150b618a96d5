//! `perch quickstart`: a private app goes to sleep and is woken by another app, before your eyes.
//!
//! It plays on a stage of its own (a network namespace and a directory), with the real server and
//! the real `fly`, and leaves the host as it was: see [`stage`] and [`guard`]. What is played is in [`script`].

pub(crate) mod guard;
mod image;
mod script;
mod stage;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use stage::Stage;

/// How to play.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// End when it was seen, without waiting for a key
    #[arg(long)]
    once: bool,
    /// Where to keep its data
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Entry point of `perch quickstart`.
pub(crate) fn main(options: Options) -> ExitCode {
    match play(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

fn play(Options { once, dir }: Options) -> anyhow::Result<()> {
    require_root()?;
    crate::doctor::require()?;
    let interrupt = Interrupt::watch()?;
    let stage = Stage::set(dir)?;
    // Ctrl-C also reaches the `fly` that plays just now; it ends, and with it the play.
    let played = script::play(&stage);
    if played.is_ok() && !once {
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
