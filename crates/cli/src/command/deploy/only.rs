//! The plan of a deploy, for the Machines that its flags leave it.

use super::super::Context;
use super::super::machine::process_group;
use super::{Job, Work, volumes};
use crate::args::Only;
use crate::failure::{Failure, Outcome};
use crate::flytoml::Config;
use perch_api::wire::Machine;
use perch_core::deploy::{Activity, ObservedMachine, Plan, WantedGroup};
use std::collections::BTreeSet;

/// Makes the plan; a filter is said with how many Machines it leaves.
pub(super) fn plan(context: &Context<'_>, job: &Job, managed: Vec<Machine>) -> Plan {
    let only = &job.options.only;
    let groups: BTreeSet<String> = managed.iter().map(process_group).collect();
    let total = managed.len();
    let kept: Vec<_> = managed.into_iter().filter(|machine| only.keeps(machine)).collect();
    let filters = only.names();
    if !filters.is_empty() {
        let (names, count) = (filters.join("/"), kept.len());
        let plural = if filters.len() == 1 { "" } else { "s" };
        context
            .console
            .note(format!("{names} filter{plural} applied, deploying to {count}/{total} machines"));
    }
    // A restart plans with the groups that there are.
    let all = match job.work {
        Work::Deploy => job.config.groups(),
        Work::Restart => groups.iter().cloned().collect(),
    };
    let meant = all.into_iter().filter(|group| only.has(group));
    let wanted: Vec<_> = meant.map(|group| wanted(job, group)).collect();
    let observed: Vec<_> = kept.iter().filter_map(observe).collect();
    let mut plan = perch_core::deploy::plan(&wanted, &observed, job.options.settings);
    // A group is new when it has no Machine at all, not when none of its Machines is meant.
    let may_create = only.only_machines.is_empty();
    plan.create.retain(|new| may_create && !groups.contains(&new.group));
    plan
}

fn observe(machine: &Machine) -> Option<ObservedMachine> {
    let activity = Activity::of_state(machine.state.as_str())?;
    Some(ObservedMachine { id: machine.id.clone(), group: process_group(machine), activity })
}

fn wanted(job: &Job, name: String) -> WantedGroup {
    let has_services = !job.config.services_of(&name).is_empty();
    let has_mounts = volumes::mount_of(&job.config, &name).is_some();
    WantedGroup { name, has_services, has_mounts }
}

/// Refuses the name of a group that is not in the file: nothing would be deployed.
pub(super) fn check(only: &Only, config: &Config) -> Outcome {
    let groups = config.groups();
    match only.process_groups.iter().find(|name| !name.is_empty() && !groups.contains(name)) {
        Some(name) => Err(Failure::new(format!("there is no process group '{name}' in fly.toml"))
            .hint(format!("There is {}", groups.join(", ")))),
        None => Ok(()),
    }
}

impl Only {
    fn keeps(&self, machine: &Machine) -> bool {
        let in_list = |list: &[String], name: &str| list.iter().any(|item| item == name);
        let is_meant = |list: &[String], name: &str| !is_given(list) || in_list(list, name);
        is_meant(&self.regions, &machine.region)
            && !in_list(&self.exclude_regions, &machine.region)
            && is_meant(&self.only_machines, &machine.id)
            && !in_list(&self.exclude_machines, &machine.id)
            && self.has(&process_group(machine))
    }

    fn has(&self, group: &str) -> bool {
        !is_given(&self.process_groups) || self.process_groups.iter().any(|name| name == group)
    }

    fn names(&self) -> Vec<&'static str> {
        let filters = [
            ("--regions", &self.regions),
            ("--exclude-regions", &self.exclude_regions),
            ("--only-machines", &self.only_machines),
            ("--exclude-machines", &self.exclude_machines),
            ("--process-groups", &self.process_groups),
        ];
        filters.into_iter().filter(|(_, list)| is_given(list)).map(|(name, _)| name).collect()
    }
}

fn is_given(list: &[String]) -> bool {
    list.iter().any(|item| !item.is_empty())
}
