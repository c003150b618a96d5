//! Makes `core`'s plan and carries it out: release, leases, then each step with its waiting.
//!
//! The plan was made from what was seen; each Machine is looked at again before it is changed, because a
//! request may have woken it meanwhile.

use super::super::machine::is_managed;
use super::super::{Context, all};
use super::guard::Guard;
use super::leases::Leases;
use super::progress::{Line, Mark};
use super::watch::{Check, Watch};
use super::{Job, Looks, Work, addresses, machine_config, only, volumes};
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use perch_api::wire::{LaunchInput, Machine, MachineConfig, MachineFilter};
use perch_core::deploy::{
    Activity, AfterUpdate, Batch, NewMachines, Plan, Spare, Step, Strategy, after_update,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One rollout under way.
struct Rollout<'a> {
    context: &'a Context<'a>,
    job: &'a Job,
    guard: &'a Guard,
    leases: &'a Leases,
    /// Groups whose listening was looked at: once for each and deploy (DE-41).
    looked_at: RefCell<BTreeSet<String>>,
    /// By id, those that took the place of others: who stood by for the old one does so for the new one.
    replaced: RefCell<BTreeMap<String, String>>,
    total: usize,
    begun: Cell<usize>,
}

/// A call that is under way when Ctrl-C comes may end, so that what it makes is known and given back.
const CALL_GRACE: Duration = Duration::from_millis(400);

/// Deploys: takes the right to, plans, takes leases, changes, and closes the release whatever happened.
pub(super) async fn run(context: &Context<'_>, job: &Job) -> Outcome {
    let app = &job.app.name;
    context.interrupt.check()?;
    let _until_closed = context.interrupt.hold();
    let guard = Guard::begin(context, job).await?;
    let leases = Leases::new(job.options.lease, format!("fly deploy of {app}"));
    let result = tokio::select! {
        result = change(context, job, &guard, &leases) => result,
        lost = guard.until_lost(context) => Err(lost),
        never = leases.keep_alive(context, app) => match never {},
        cut = interrupted(context) => Err(cut),
    };
    guard.close(context, &result).await;
    leases.release_all(context, app).await;
    result
}

async fn interrupted(context: &Context<'_>) -> Failure {
    context.interrupt.pressed().await;
    tokio::time::sleep(CALL_GRACE).await;
    Failure::interrupted()
}

async fn change(context: &Context<'_>, job: &Job, guard: &Guard, leases: &Leases) -> Outcome {
    let app = &job.app.name;
    let machines = context.client.list_machines(app, &MachineFilter::default()).await?;
    let managed: Vec<_> = machines.into_iter().filter(is_managed).collect();
    let first = managed.is_empty() && job.app.latest_deploy.is_none();
    let plan = only::plan(context, job, managed.clone());
    let occasion = if first { addresses::Occasion::First } else { addresses::Occasion::Later };
    leases.acquire(context, app, &plan.leased()).await?;
    if job.work == Work::Deploy {
        context.console.line("");
        context.console.line(format!("Watch your deployment with: fly logs -a {app}"));
        context.console.line("");
    }
    guard.run(context).await?;
    if job.work == Work::Deploy {
        addresses::ensure(context, job, occasion).await?;
    }
    let leased = plan.leased();
    let meant: Vec<_> =
        managed.into_iter().filter(|machine| leased.contains(&machine.id.as_str())).collect();
    volumes::ensure(context, job, &plan, &meant, occasion).await?;
    announce(context, &plan);
    let total = plan.update.iter().map(|batch| batch.steps.len()).sum();
    let (looked_at, replaced) = Default::default();
    let begun = Cell::new(0);
    let rollout = Rollout { context, job, guard, leases, looked_at, replaced, total, begun };
    rollout.carry_out(&plan).await
}

fn announce(context: &Context<'_>, plan: &Plan) {
    if plan.create.is_empty() && plan.destroy.is_empty() {
        return;
    }
    let console = context.console;
    let changed = !plan.update.is_empty() || !plan.destroy.is_empty();
    console.line(match changed {
        true => "Process groups have changed. This will:",
        false => "This deployment will:",
    });
    for NewMachines { group, spare } in &plan.create {
        let made = match spare {
            Spare::None => format!("1 \"{group}\" machine"),
            Spare::Second => format!("2 \"{group}\" machines"),
            Spare::Standby => format!("1 \"{group}\" machine and 1 standby machine for it"),
        };
        console.line(format!(" * create {made}"));
    }
    let gone: BTreeSet<_> = plan.destroy.iter().map(|step| &step.group).collect();
    for group in gone {
        let count = plan.destroy.iter().filter(|step| step.group == *group).count();
        let plural = if count == 1 { "" } else { "s" };
        console.line(format!(" * destroy {count} \"{group}\" machine{plural}"));
    }
    console.line("");
}

impl Rollout<'_> {
    async fn carry_out(&self, plan: &Plan) -> Outcome {
        self.destroy(&plan.destroy).await?;
        for new in &plan.create {
            self.create(new).await?;
        }
        if !plan.create.is_empty() {
            self.context.console.note("Finished launching new machines");
        }
        self.update(&plan.update).await
    }

    async fn destroy(&self, steps: &[Step]) -> Outcome {
        for Step { group, machine } in steps {
            self.guard.check(self.context).await?;
            let nonce = self.leases.nonce(machine);
            let app = &self.job.app.name;
            self.context.client.kill_and_delete_machine(app, machine, nonce.as_deref()).await?;
            self.leases.forget(machine);
            self.context.console.line(format!("Machine {machine} [{group}] was destroyed"));
        }
        Ok(())
    }

    async fn create(&self, new: &NewMachines) -> Outcome {
        let group = &new.group;
        let console = self.context.console;
        console.line(format!("No machines in group {group}, launching a new machine"));
        let first = self.create_one(group, None).await?;
        match new.spare {
            Spare::None => return Ok(()),
            Spare::Second => {
                console.line(
                    "Creating a second machine for high availability and zero downtime deployments.",
                );
                console.line("To disable this, deploy with --ha=false");
                self.create_one(group, None).await?;
            }
            Spare::Standby => {
                let id = console.paint(Style::Bold, &first);
                console.line(format!("Creating a standby machine for {id}"));
                self.create_one(group, Some(&first)).await?;
            }
        }
        Ok(())
    }

    /// Makes a Machine and sees it up, or makes one that stands by. The answer is its id.
    async fn create_one(&self, group: &str, standby_for: Option<&str>) -> Outcome<String> {
        let line = Line { index: 0, total: 1 };
        let mut config = machine_config::of_new(self.job, group, &self.guard.release)?;
        if let Some(first) = standby_for {
            config = machine_config::standing_by(config, &[first.to_owned()])?;
        }
        let region = self.job.config.primary_region.clone().unwrap_or_default();
        let input = LaunchInput {
            region,
            lease_ttl: self.leases.input().ttl,
            skip_launch: standby_for.is_some(),
            ..LaunchInput::new(config)
        };
        let app = &self.job.app.name;
        self.guard.check(self.context).await?;
        line.show(self.context, "Launching new machine");
        let machine = self.context.client.create_machine(app, &input).await?;
        if let Some(nonce) = &machine.nonce {
            self.leases.insert(&machine.id, nonce.clone());
        }
        let id = machine.id.clone();
        line.print(self.context, Mark::None, &format!("Machine {id} [{group}] was created"));
        if !input.skip_launch {
            self.see_it_up(line, &machine, group, 0).await?;
        }
        self.leases.release(self.context, app, &id).await;
        Ok(id)
    }

    /// Batch after batch; within a batch at the same time, and all are waited for even when one fails.
    async fn update(&self, batches: &[Batch]) -> Outcome {
        if batches.is_empty() {
            return Ok(());
        }
        let word = match self.job.options.settings.strategy {
            Strategy::Rolling => "rolling",
            Strategy::Immediate => "immediate",
        };
        let app = &self.job.app.name;
        self.context
            .console
            .line(format!("Updating existing machines in '{app}' with {word} strategy"));
        for batch in batches {
            let updates = batch.steps.iter().map(|step| self.update_one(step));
            for result in all(updates).await {
                result?;
            }
        }
        Ok(())
    }

    async fn update_one(&self, step: &Step) -> Outcome {
        let line = Line { index: self.begun.replace(self.begun.get() + 1), total: self.total };
        let Step { group, machine: id } = step;
        line.print(self.context, Mark::Running, &format!("Updating {id} [{group}]"));
        let result = self.replace_config(line, step).await;
        match &result {
            Ok(()) => {
                let text = format!("Machine {id} [{group}] update succeeded");
                line.print(self.context, Mark::Done, &text);
            }
            Err(failure) => {
                let text = format!("Machine {id} [{group}] update failed: {}", failure.message());
                line.print(self.context, Mark::Failed, &text);
            }
        }
        self.leases.release(self.context, &self.job.app.name, id).await;
        result
    }

    async fn replace_config(&self, line: Line, step: &Step) -> Outcome {
        let (app, id) = (&self.job.app.name, &step.machine);
        let before = self.context.client.get_machine(app, id).await?;
        let Some(activity) = Activity::of_state(before.state.as_str()) else {
            return Err(Failure::new(format!("machine {id} was destroyed meanwhile")));
        };
        let after = after_update(activity);
        let release = &self.guard.release;
        let config = match self.job.work {
            Work::Deploy => machine_config::of_existing(self.job, &before, release)?,
            Work::Restart => machine_config::of_same(&before, release)?,
        };
        let config = self.following_replaced(config)?;
        let input = LaunchInput {
            skip_launch: after == AfterUpdate::StayAsleep,
            ..LaunchInput::new(config)
        };
        let nonce = self.leases.nonce(id);
        self.guard.check(self.context).await?;
        if self.job.work == Work::Deploy
            && volumes::change(&self.job.config, &before) == volumes::Change::Replaced
        {
            return self.replace(line, step, &before, input).await;
        }
        let machine = self.context.client.update_machine(app, id, &input, nonce.as_deref()).await?;
        match after {
            AfterUpdate::StayAsleep => Ok(()),
            AfterUpdate::Start => {
                let seen = before.events.iter().map(|event| event.timestamp).max().unwrap_or(0);
                self.see_it_up(line, &machine, &step.group, seen).await
            }
        }
    }

    /// A standby of Machines that were replaced stands by for those that are there now.
    fn following_replaced(&self, config: MachineConfig) -> Outcome<MachineConfig> {
        let replaced = self.replaced.borrow();
        let standbys = &config.view().standbys;
        if !standbys.iter().any(|id| replaced.contains_key(id)) {
            return Ok(config);
        }
        let now = |id: &String| replaced.get(id).unwrap_or(id).clone();
        let ids: Vec<String> = standbys.iter().map(now).collect();
        machine_config::standing_by(config, &ids)
    }

    /// A Machine gets a volume, or loses one: another takes its place.
    async fn replace(
        &self,
        line: Line,
        step: &Step,
        before: &Machine,
        input: LaunchInput,
    ) -> Outcome {
        let (app, Step { group, machine: id }) = (&self.job.app.name, step);
        line.print(
            self.context,
            Mark::Running,
            &format!("Replacing {id} [{group}] by new machine"),
        );
        let nonce = self.leases.nonce(id);
        self.context.client.kill_and_delete_machine(app, id, nonce.as_deref()).await?;
        self.leases.forget(id);
        let (region, name) = (before.region.clone(), before.name.clone());
        let input = LaunchInput { region, name, ..input };
        let machine = self.context.client.create_machine(app, &input).await?;
        self.replaced.borrow_mut().insert(id.clone(), machine.id.clone());
        let text = format!("Created machine {} [{group}]", machine.id);
        line.print(self.context, Mark::Running, &text);
        match input.skip_launch {
            true => Ok(()),
            false => self.see_it_up(line, &machine, group, 0).await,
        }
    }

    /// Waits until the Machine runs, and looks whether it does what its services need.
    async fn see_it_up(&self, line: Line, machine: &Machine, group: &str, seen: i64) -> Outcome {
        let watch = Watch {
            context: self.context,
            job: self.job,
            line,
            id: &machine.id,
            version: &machine.instance_id,
            group,
            seen_ms: seen,
        };
        self.context.interrupt.cut(watch.wait_started()).await?;
        let first = self.looked_at.borrow_mut().insert(group.to_owned());
        let immediate = self.job.options.settings.strategy == Strategy::Immediate;
        let check = match (first, self.job.options.looks) {
            (_, Looks::None) => return Ok(()),
            (true, _) => Some(Check::CrashesAndListening),
            (false, Looks::All) if !immediate => Some(Check::Crashes),
            (false, _) => None,
        };
        let looks = async {
            if let Some(check) = check {
                watch.check(check).await?;
            }
            if immediate { Ok(()) } else { watch.wait_healthy().await }
        };
        let checked = self.context.interrupt.cut(looks).await;
        line.end(self.context);
        checked
    }
}
