//! A host with a server on which sequences run, one after the other, and the model that is held against it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use perch_api::client::Client;
use perch_api::wire::AppPatch;
use perch_testkit::{Host, Network, Process, wait_until};
use tokio::runtime::Runtime;

use crate::call::{Answer, Call};
use crate::choices::Choices;
use crate::image::Image;
use crate::leaks::Resources;
use crate::meeting::check_answer;
use crate::model::{Effect, Model, Refusal};
use crate::op::{self, Fate, Op, Step, Victim};
use crate::seen::Seen;
use crate::tally::Tally;

/// Nothing takes longer: a stop has 5 s, a start after a failure waits 1 s.
const SETTLED_MAX: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(4);
/// A new address, or one of a Machine that was just started, answers within this time.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A refusal of a connection comes at once; silence for so long is one as well.
const REFUSAL_MAX: Duration = Duration::from_millis(300);
/// A lease of one second is over after this, wherever in a second it began.
const SHORT_LEASE: Duration = Duration::from_millis(2_300);
/// Steps of a sequence, besides those that destroy what is left.
const STEPS: (usize, usize) = (8, 24);

const CONFIG: &str = "organizations = [\"personal\", \"acme\"]\n";

/// See the module's head.
pub(crate) struct Lane {
    host: Host,
    server: Process,
    runtime: Runtime,
    client: Client,
    image: Image,
    /// Apps that have their image.
    pushed: BTreeSet<String>,
    model: Model,
    before: Option<Resources>,
    pub(crate) tally: Tally,
}

/// A sequence that went wrong.
pub(crate) struct Failure {
    pub(crate) steps: Vec<Step>,
    pub(crate) error: anyhow::Error,
    pub(crate) log: String,
}

impl Lane {
    /// Makes a host and lets its server have had one of everything, so that what stays for ever is there.
    ///
    /// # Errors
    /// When the host cannot be made.
    pub(crate) fn start() -> Result<Self> {
        let host = Host::start_with(Network::Open, CONFIG)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut lane = Self {
            server: host.server_process()?,
            client: Client::unix(host.socket()),
            image: Image::read()?,
            host,
            runtime,
            pushed: BTreeSet::new(),
            model: Model::default(),
            before: None,
            tally: Tally::default(),
        };
        for step in op::warm_up() {
            lane.step(&step).with_context(|| format!("warming up: {step:?}"))?;
        }
        lane.pushed.clear();
        lane.before = Some(Resources::of(&lane.host)?);
        Ok(lane)
    }

    /// Runs a sequence that follows from a seed.
    pub(crate) fn run(&mut self, seed: u64) -> Result<(), Failure> {
        let mut choices = Choices::from_seed(seed);
        let mut done = Vec::new();
        let outcome = self.draw_and_run(&mut choices, &mut done).and_then(|()| self.check_leaks());
        self.tally.sequences += 1;
        outcome.map_err(|error| self.failure(done, error))
    }

    /// Runs a sequence that is known.
    pub(crate) fn replay(&mut self, steps: &[Step]) -> Result<(), Failure> {
        let outcome = steps.iter().try_for_each(|step| self.told_step(step));
        let ended = outcome.and_then(|()| {
            for step in op::end_quietly(&self.model) {
                self.told_step(&step)?;
            }
            self.check_leaks()
        });
        ended.map_err(|error| self.failure(steps.to_vec(), error))
    }

    fn failure(&self, steps: Vec<Step>, error: anyhow::Error) -> Failure {
        Failure { steps, error, log: self.host.server_log_tail() }
    }

    fn draw_and_run(&mut self, choices: &mut Choices, done: &mut Vec<Step>) -> Result<()> {
        let count = STEPS.0 + choices.below(STEPS.1 - STEPS.0);
        while done.len() < count {
            for step in op::draw(choices, &self.model) {
                done.push(step.clone());
                self.told_step(&step)?;
            }
        }
        // A removal that a kill has prevented is asked for again.
        while !self.model.apps.is_empty() {
            for step in op::end(choices, &self.model) {
                done.push(step.clone());
                self.told_step(&step)?;
            }
        }
        Ok(())
    }

    fn told_step(&mut self, step: &Step) -> Result<()> {
        let aimed = step.op.aim(&self.model);
        self.step(step).with_context(|| format!("at {step:?}, which is {aimed:?}"))
    }

    fn check_leaks(&self) -> Result<()> {
        ensure!(self.model.apps.is_empty(), "the model still has apps");
        match &self.before {
            Some(before) => Resources::check_not_grown(&self.host, before),
            None => Ok(()),
        }
    }

    /// Makes one step and compares.
    fn step(&mut self, step: &Step) -> Result<()> {
        if let Fate::Before(victim) = step.fate {
            self.befall(victim)?;
        }
        match (step.op.aim(&self.model), step.op.visited()) {
            (Some(call), _) => self.call(step, &call),
            (None, Some(app)) => self.visit(app),
            (None, None) => Ok(()),
        }
    }

    fn call(&mut self, step: &Step, call: &Call) -> Result<()> {
        self.push(call)?;
        let expected = self.model.after(call);
        let answer = self.make(call, step.fate)?;
        self.tally.count(call, &answer);
        let wanted = match (expected, &answer) {
            (Ok(Effect { halfway, done }), Answer::Lost) => {
                let nothing = self.model.clone();
                [vec![nothing], halfway, done].concat()
            }
            (Err(_), Answer::Lost) => vec![self.model.clone()],
            (Err(refusal), answer) => {
                check_refused(&refusal, answer)?;
                vec![self.model.clone()]
            }
            (Ok(_), Answer::Refused { code, text }) => bail!("it was refused: {code} {text}"),
            (Ok(Effect { mut done, .. }), _)
                if matches!(step.fate, Fate::Nothing | Fate::Before(_)) =>
            {
                done.drain(..done.len() - 1);
                done
            }
            (Ok(Effect { done, .. }), _) => done,
        };
        let wanted = self.survive(step.fate, wanted)?;
        let wanted = self.wait_for_short_lease(step, wanted);
        let wanted = self.ask_for_a_half_removed_app(call, &answer, wanted)?;
        let mut met = self.settle(&wanted)?;
        if !matches!(step.op, Op::ShortLease { .. }) {
            check_answer(&answer, &self.model, &mut met)?;
        }
        if let (Call::ReleaseIp { ip, .. }, Answer::Done) = (call, &answer) {
            self.check_refuses(&met, *ip)?;
        }
        self.take(met);
        Ok(())
    }

    /// Pushes the image of an app before it is asked for.
    fn push(&mut self, call: &Call) -> Result<()> {
        let app = match call {
            Call::CreateMachine { app, .. } => app,
            Call::UpdateMachine { target, .. } => &target.app,
            _ => return Ok(()),
        };
        if self.model.apps.contains_key(app) && self.pushed.insert(app.clone()) {
            self.runtime.block_on(self.image.push(&self.client, app))?;
        }
        Ok(())
    }

    /// Makes a call; kills the server meanwhile, if that is its fate.
    fn make(&self, call: &Call, fate: Fate) -> Result<Answer> {
        let Fate::During { micros } = fate else {
            return self.runtime.block_on(call.make(&self.client));
        };
        let server = self.server.clone();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(micros));
            server.kill()
        });
        let answer = self.runtime.block_on(call.make(&self.client));
        killer.join().ok().context("the killer panicked")??;
        answer
    }

    /// Starts again what the fate of a call has killed, or has still to kill.
    fn survive(&mut self, fate: Fate, wanted: Vec<Model>) -> Result<Vec<Model>> {
        match fate {
            Fate::Nothing | Fate::Before(_) => return Ok(wanted),
            Fate::During { .. } => {
                self.tally.kills_during += 1;
                self.host.await_server_end()?;
                self.start_server()?;
            }
            Fate::After(victim) => self.befall(victim)?,
        }
        Ok(wanted.into_iter().map(Model::shaken).collect())
    }

    fn befall(&mut self, victim: Victim) -> Result<()> {
        self.tally.kills += 1;
        match victim {
            Victim::Proxy => return self.kill_proxy(),
            Victim::Server => self.host.kill_server()?,
            Victim::Both => {
                self.host.kill_server()?;
                // There is none while its server was about to start another.
                drop(self.host.kill_proxy());
            }
            Victim::Politely => self.host.stop_server()?,
            Victim::Twice { millis } => {
                self.host.kill_server()?;
                self.host.start_and_kill_server(Duration::from_millis(millis))?;
            }
        }
        self.start_server()
    }

    /// The last one may be dead already, and the next one not there yet.
    fn kill_proxy(&self) -> Result<()> {
        let killed = || Ok(Some(self.host.kill_proxy()?));
        wait_until("a proxy that can be killed", SETTLED_MAX, killed).map(drop)
    }

    fn start_server(&mut self) -> Result<()> {
        self.host.start_server()?;
        self.server = self.host.server_process()?;
        let shaken = std::mem::take(&mut self.model).shaken();
        self.model = shaken;
        Ok(())
    }

    /// A lease of a second ends; so everything is looked at when it has.
    fn wait_for_short_lease(&self, step: &Step, mut wanted: Vec<Model>) -> Vec<Model> {
        if matches!(step.op, Op::ShortLease { .. }) {
            std::thread::sleep(SHORT_LEASE);
            wanted.iter_mut().for_each(Model::end_short_leases);
        }
        wanted
    }

    /// An app that is being removed looks like one that stays; only a change tells.
    fn ask_for_a_half_removed_app(
        &self,
        call: &Call,
        answer: &Answer,
        wanted: Vec<Model>,
    ) -> Result<Vec<Model>> {
        let (Call::DeleteApp { app }, Answer::Lost) = (call, answer) else { return Ok(wanted) };
        let changed = self.runtime.block_on(self.client.update_app(app, &AppPatch::default()));
        let stays = match changed {
            Ok(_) => true,
            Err(error) if matches!(error.status(), Some(404 | 409)) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(wanted.into_iter().filter(|model| model.apps.contains_key(app) == stays).collect())
    }

    /// Looks until the server is as one of these models.
    fn settle(&self, wanted: &[Model]) -> Result<Model> {
        let started = Instant::now();
        loop {
            let met = match self.runtime.block_on(Seen::look(&self.client)) {
                Ok(seen) => wanted.iter().rev().map(|model| model.meet(&seen)).collect(),
                Err(error) => vec![Err(error)],
            };
            let mut errors = Vec::new();
            for met in met {
                match met {
                    Ok(met) => return Ok(met),
                    Err(error) => errors.push(format!("{error:#}")),
                }
            }
            if SETTLED_MAX < started.elapsed() {
                bail!("server and model differ:\n  {}", errors.join("\n  or "));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// The next step begins here.
    fn take(&mut self, mut met: Model) {
        met.remember_events(&self.model);
        self.pushed.retain(|app| met.apps.contains_key(app));
        self.model = met;
    }

    /// Asks an app as a caller does: who has an address and a Machine that runs answers.
    fn visit(&mut self, app: &str) -> Result<()> {
        let Some(address) = self.model.answering_address(app) else { return Ok(()) };
        self.tally.visits += 1;
        let address = SocketAddr::new(address, 80);
        wait_until("an answer", ANSWER_MAX, || {
            let answer = self.host.inside(|| perch_testkit::get(address, "/", ANSWER_MAX))?;
            ensure!(answer.status == 200, "{address} answers {answer:?}");
            Ok(Some(()))
        })?;
        let model = self.model.clone();
        let met = self.settle(&[model])?;
        self.take(met);
        Ok(())
    }

    /// An address that was taken back answers nobody (FC-04).
    fn check_refuses(&self, met: &Model, ip: IpAddr) -> Result<()> {
        if met.apps.values().flat_map(|app| &app.ips).any(|own| own.ip == Some(ip)) {
            return Ok(());
        }
        let address = SocketAddr::new(ip, 80);
        let connected =
            self.host.inside(|| Ok(TcpStream::connect_timeout(&address, REFUSAL_MAX).is_ok()))?;
        ensure!(!connected, "{ip} was taken back and takes connections");
        Ok(())
    }
}

fn check_refused(refusal: &Refusal, answer: &Answer) -> Result<()> {
    let Answer::Refused { code, text } = answer else {
        bail!("model: {refusal:?}, server: {answer:?}");
    };
    let good = *code == refusal.code && refusal.is_told_by(text);
    ensure!(good, "model: {refusal:?}, server: {code} {text}");
    Ok(())
}

impl Model {
    /// Leases of one second are over.
    fn end_short_leases(&mut self) {
        for machine in self.apps.values_mut().flat_map(|app| &mut app.machines) {
            machine.lease.take_if(|lease| lease.ttl == 1);
        }
    }

    /// Events that were seen before this step are on disk by now.
    fn remember_events(&mut self, before: &Self) {
        for (name, app) in &mut self.apps {
            let known = before.apps.get(name).map_or(&[][..], |app| &app.machines);
            for machine in &mut app.machines {
                let same = known.iter().find(|known| known.id == machine.id);
                machine.events_on_disk = same.map_or(0, |known| known.events.len());
            }
        }
    }
}
