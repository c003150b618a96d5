//! Deploys, upgrades and kills, at times and of victims that a seed decides.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use perch_testkit::{Host, Process};

use super::dice::Dice;
use super::history::{History, Kind, Ongoing};

/// From one to the next, in milliseconds: long enough that callers come to rest between some of them, and not between all.
const PAUSE_MS: std::ops::Range<u64> = 200..4000;
/// How long there is no server after a kill, at most.
const DEAD_MS_MAX: u64 = 700;
/// A deploy that takes longer hangs.
const DEPLOY_MAX: Duration = Duration::from_secs(100);
/// So often is a deploy said again whose server was ended, and so much later: what it has leased ends by itself.
const DEPLOYS_MAX: usize = 20;
const LEASED: Duration = Duration::from_secs(14);
/// Of the apps. The example app is up in some milliseconds, so a deploy takes a second.
const DEPLOYS_AT_ONCE: usize = 2;

/// Does them.
pub(super) struct Disturber<'a> {
    pub(super) host: &'a mut Host,
    history: &'a History,
    apps: usize,
    kinds: Vec<Kind>,
    dice: Dice,
    due: Instant,
    releases: usize,
    deploys: Vec<Deploy>,
    /// Deploys that failed because their server was ended, and were said again.
    pub(super) said_again: usize,
    pub(super) faults: usize,
}

/// One that goes on.
struct Deploy {
    app: usize,
    /// None while it waits to be said again.
    child: Option<Child>,
    begun: Instant,
    ongoing: Ongoing,
    tries: usize,
}

impl<'a> Disturber<'a> {
    /// Of a host with so many apps; nothing at all without kinds.
    pub(super) fn new(
        host: &'a mut Host,
        history: &'a History,
        apps: usize,
        kinds: &[Kind],
        seed: u64,
    ) -> Self {
        let mut dice = Dice::new(seed, u64::MAX);
        let due = Instant::now() + pause(&mut dice);
        // One app of many is touched by a deploy, and all by the others.
        let times = |kind: &Kind| if *kind == Kind::Deploy { 5 } else { 1 };
        let kinds = kinds.iter().flat_map(|kind| vec![*kind; times(kind)]).collect();
        let deploys = Vec::new();
        Self {
            host,
            history,
            apps,
            kinds,
            dice,
            due,
            releases: 0,
            deploys,
            said_again: 0,
            faults: 0,
        }
    }

    /// Looks after what goes on, and does the next thing if it is time.
    pub(super) fn step(&mut self) -> Result<()> {
        self.look_after_deploys()?;
        if self.kinds.is_empty() || Instant::now() < self.due {
            return Ok(());
        }
        let kind = self.kinds[self.dice.roll(self.kinds.len() as u64) as usize];
        self.disturb(kind)
            .with_context(|| format!("{} at {}", kind.name(), super::time_of_day()))?;
        self.due = Instant::now() + pause(&mut self.dice);
        Ok(())
    }

    /// Waits for what goes on, and begins nothing.
    pub(super) fn finish(&mut self) -> Result<()> {
        while !self.deploys.is_empty() {
            self.look_after_deploys()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn disturb(&mut self, kind: Kind) -> Result<()> {
        if kind == Kind::Deploy {
            return self.deploy();
        }
        println!("{} {}", super::time_of_day(), kind.name());
        let ongoing = self.history.begin(kind, None);
        match kind {
            Kind::Deploy => {}
            Kind::Upgrade => {
                let release = self.release()?;
                self.host.upgrade(&release)?;
            }
            Kind::Restart => {
                let release = self.release()?;
                self.host.leave_server()?;
                self.host.set_binary(&release);
                self.host.start_server()?;
            }
            Kind::KillServer => {
                self.host.kill_server()?;
                self.rest(DEAD_MS_MAX);
                self.host.start_server()?;
            }
            Kind::KillProxy => self.kill_proxy()?,
            Kind::KillBoth => {
                self.host.kill_server()?;
                self.kill_proxy()?;
                self.history.gone(ongoing);
                self.rest(DEAD_MS_MAX);
                self.host.start_server()?;
            }
        }
        self.history.end(ongoing);
        Ok(())
    }

    fn rest(&mut self, below_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.roll(below_ms)));
    }

    /// Of all that there are: former ones have callers, too.
    fn kill_proxy(&mut self) -> Result<()> {
        let mut proxies = proxies(self.host);
        if proxies.is_empty() {
            return Ok(());
        }
        let place = self.dice.roll(proxies.len() as u64) as usize;
        proxies.swap_remove(place).kill()
    }

    /// The same program by another name, as a package would bring it.
    fn release(&mut self) -> Result<PathBuf> {
        self.releases += 1;
        let path = |number| self.host.dir().join(format!("release-{number}"));
        // A link would be the same program to a server that looks whether its proxy is of another release.
        fs::copy(self.host.binary(), path(self.releases)).context("copying the program")?;
        // Nobody starts anything by those before the last.
        drop(fs::remove_file(path(self.releases.wrapping_sub(2))));
        Ok(path(self.releases))
    }

    fn deploy(&mut self) -> Result<()> {
        let app = self.dice.roll(self.apps as u64) as usize;
        if DEPLOYS_AT_ONCE <= self.deploys.len() || self.deploys.iter().any(|it| it.app == app) {
            return Ok(());
        }
        let ongoing = self.history.begin(Kind::Deploy, Some(app));
        let (child, begun) = (Some(self.begin(app)?), Instant::now());
        self.deploys.push(Deploy { app, child, begun, ongoing, tries: 1 });
        Ok(())
    }

    fn begin(&self, app: usize) -> Result<Child> {
        let dir = self.host.dir().join(super::name(app));
        let mut command = self.host.fly_command(&dir, &["deploy", "--ha=false"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("starting fly deploy")
    }

    fn look_after_deploys(&mut self) -> Result<()> {
        for mut deploy in std::mem::take(&mut self.deploys) {
            let Some(child) = &mut deploy.child else {
                if LEASED < deploy.begun.elapsed() {
                    (deploy.child, deploy.begun) = (Some(self.begin(deploy.app)?), Instant::now());
                }
                self.deploys.push(deploy);
                continue;
            };
            if child.try_wait()?.is_none() {
                if deploy.begun.elapsed() < DEPLOY_MAX {
                    self.deploys.push(deploy);
                    continue;
                }
                child.kill()?;
            }
            if self.has_ended(&mut deploy)? {
                self.history.end(deploy.ongoing);
            } else {
                self.deploys.push(deploy);
            }
        }
        Ok(())
    }

    /// Whether it is done; else it is said again later.
    fn has_ended(&mut self, deploy: &mut Deploy) -> Result<bool> {
        let Some(child) = deploy.child.take() else { return Ok(false) };
        let (output, begun) = (child.wait_with_output()?, deploy.begun);
        if output.status.success() {
            return Ok(true);
        }
        let what = format!("{} deploy of app{}", super::time_of_day(), deploy.app);
        let [out, said] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
        match self.history.server_ended_since(begun) {
            Some(kind) => {
                self.said_again += 1;
                println!("{what} will be said again after {}: {}", kind.name(), said.trim());
            }
            None => {
                self.faults += 1;
                println!(
                    "FAULT, {what} after {:?}, {}: {out}{said}",
                    begun.elapsed(),
                    output.status
                );
            }
        }
        deploy.tries += 1;
        deploy.begun = Instant::now();
        if DEPLOYS_MAX < deploy.tries {
            self.faults += 1;
            println!("FAULT, {what} was tried {DEPLOYS_MAX} times");
        }
        Ok(DEPLOYS_MAX < deploy.tries)
    }
}

fn pause(dice: &mut Dice) -> Duration {
    Duration::from_millis(PAUSE_MS.start + dice.roll(PAUSE_MS.end - PAUSE_MS.start))
}

/// The processes of all proxies, of whichever release.
pub(super) fn proxies(host: &Host) -> Vec<Process> {
    of_role(host, "proxy")
}

/// All processes that run with this first argument.
pub(super) fn of_role(host: &Host, role: &str) -> Vec<Process> {
    let mut found = host.processes();
    found.retain(|it| it.state != 'Z' && it.args.get(1).is_some_and(|arg| arg == role));
    found
}
