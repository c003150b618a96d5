//! The plan of a deploy: from the Machines that exist and those wanted to ordered steps.
//!
//! ```text
//!  observed Machines ┐
//!                    ├─ plan ─► destroy removed groups ─► create new Machines ─► update in batches
//!  wanted groups ────┘
//! ```
//!
//! A plan names Machines, never a number of them (DESIGN 3). It is made once; while it is carried out
//! a Machine may be woken by a request, so whoever updates a Machine looks at it again and asks
//! [`after_update`] then. Leases are taken on everything that [`Plan::leased`] names before the first
//! step, in that order, so that of two deploys at the same time one is told about the other and none
//! waits for the other.
//!
//! Not here: images, releases, waiting, health: the driver does them around each step.

use std::collections::{BTreeMap, BTreeSet};

/// A process group as the configuration wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedGroup {
    /// Name.
    pub name: String,
    /// Whether it publishes services.
    pub has_services: bool,
    /// Whether it mounts volumes: such a group has one Machine, for a volume has one user.
    pub has_mounts: bool,
}

/// A Machine as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedMachine {
    /// Its id.
    pub id: String,
    /// Its process group.
    pub group: String,
    /// What it does.
    pub activity: Activity,
}

/// What a Machine does, as far as a deploy cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// Started, starting, or failed: it shall run after the update (DE-06).
    Awake,
    /// Created, stopped, suspended or on the way there: it stays asleep (DE-06).
    Asleep,
}

/// What becomes of a Machine after its update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterUpdate {
    /// It is started, and the deploy waits for it.
    Start,
    /// It stays asleep; the next request starts it with the new config.
    StayAsleep,
}

/// How Machines are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// A few at a time, the first alone (DE-21).
    Rolling,
    /// All at once, without waiting for health (DE-20).
    Immediate,
}

/// How many Machines may be away at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxUnavailable {
    /// So many.
    Count(u32),
    /// This share of the awake Machines of a group, rounded up. Between 0 and 1.
    Share(f64),
}

/// Whether groups get a second Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Two Machines for a group; one whose group has no services stands by.
    High,
    /// One Machine for each group.
    Single,
}

/// Which steps a deploy may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Destroys, creates, updates.
    Everything,
    /// Updates only.
    UpdateOnly,
}

/// Settings of a deploy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How Machines are replaced.
    pub strategy: Strategy,
    /// How many may be away at a time.
    pub max_unavailable: MaxUnavailable,
    /// How many calls are in flight at a time; at least 1.
    pub concurrent_max: u32,
    /// Whether groups get a second Machine.
    pub availability: Availability,
    /// Which steps are allowed.
    pub scope: Scope,
}

/// What a deploy does, in order: destroy, create, update.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Machines of groups that are gone, in order of id.
    pub destroy: Vec<Step>,
    /// New Machines by group; the first of a group is awaited before its next.
    pub create: Vec<NewMachines>,
    /// Updates; a batch is begun when the one before is done.
    pub update: Vec<Batch>,
}

/// An existing Machine and its group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// Group.
    pub group: String,
    /// Machine.
    pub machine: String,
}

/// Machines to make for a group that has none: one, and what it gets beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachines {
    /// Group.
    pub group: String,
    /// Beside the first.
    pub spare: Spare,
}

/// What a group's first Machine gets beside it (DE-50).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// Nothing: a volume has one user, or none was wanted.
    None,
    /// Another that serves: one of them may stop without a gap.
    Second,
    /// One that is not started before the first has failed: what takes no requests may not bear to run twice.
    Standby,
}

/// Machines that are updated at the same time. All are of one group and alike in activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The Machines.
    pub steps: Vec<Step>,
    /// What they were doing when the plan was made.
    pub activity: Activity,
}

impl Activity {
    /// Reads a Machine's state in the API's words; `None` for one that is being removed or gone.
    pub fn of_state(state: &str) -> Option<Self> {
        match state {
            "started" | "starting" | "restarting" | "failed" | "updating" | "replacing" => {
                Some(Self::Awake)
            }
            "created" | "creating" | "stopped" | "stopping" | "suspended" | "suspending" => {
                Some(Self::Asleep)
            }
            _ => None,
        }
    }
}

/// What becomes of a Machine that does this at the moment of its update (DE-06).
pub fn after_update(activity: Activity) -> AfterUpdate {
    match activity {
        Activity::Awake => AfterUpdate::Start,
        Activity::Asleep => AfterUpdate::StayAsleep,
    }
}

impl Plan {
    /// Every Machine that the plan touches, in the one order in which leases are taken.
    pub fn leased(&self) -> Vec<&str> {
        let updated = self.update.iter().flat_map(|batch| &batch.steps);
        let machines: BTreeSet<_> =
            self.destroy.iter().chain(updated).map(|step| step.machine.as_str()).collect();
        machines.into_iter().collect()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.destroy.is_empty() && self.create.is_empty() && self.update.is_empty()
    }
}

/// Plans a deploy. Groups are treated in order of their names, Machines in order of their ids, so the
/// same input gives the same plan. Names in `wanted` are distinct.
pub fn plan(wanted: &[WantedGroup], observed: &[ObservedMachine], settings: Settings) -> Plan {
    let mut by_group: BTreeMap<&str, Vec<&ObservedMachine>> = BTreeMap::new();
    for machine in observed {
        by_group.entry(&machine.group).or_default().push(machine);
    }
    for machines in by_group.values_mut() {
        machines.sort_by(|a, b| a.id.cmp(&b.id));
    }
    let wanted: BTreeMap<_, _> = wanted.iter().map(|group| (group.name.as_str(), group)).collect();
    let mut plan = Plan::default();
    if settings.scope == Scope::Everything {
        let gone = by_group.iter().filter(|(group, _)| !wanted.contains_key(*group));
        plan.destroy = gone.flat_map(|(_, machines)| machines).map(|m| step(m)).collect();
        let missing = wanted.values().filter(|group| !by_group.contains_key(group.name.as_str()));
        plan.create = missing.map(|group| new_machines(group, settings.availability)).collect();
    }
    for group in wanted.keys() {
        let machines = by_group.get(group).map(Vec::as_slice).unwrap_or_default();
        plan.update.extend(batches(machines, settings));
    }
    plan
}

fn step(machine: &ObservedMachine) -> Step {
    Step { group: machine.group.clone(), machine: machine.id.clone() }
}

fn new_machines(group: &WantedGroup, availability: Availability) -> NewMachines {
    let spare = match availability {
        Availability::Single => Spare::None,
        Availability::High if group.has_mounts => Spare::None,
        Availability::High if group.has_services => Spare::Second,
        Availability::High => Spare::Standby,
    };
    NewMachines { group: group.name.clone(), spare }
}

/// Awake Machines first: a config that does not come up stops the deploy before it reaches those that
/// sleep, and they would only show it at their next request.
fn batches(machines: &[&ObservedMachine], settings: Settings) -> Vec<Batch> {
    let of = |activity: Activity| -> Vec<Step> {
        machines.iter().filter(|machine| machine.activity == activity).map(|m| step(m)).collect()
    };
    let concurrent = settings.concurrent_max.max(1) as usize;
    let awake = split_awake(of(Activity::Awake), settings, concurrent);
    let asleep = chunks(of(Activity::Asleep), concurrent);
    let batch = |activity: Activity| move |steps| Batch { steps, activity };
    awake
        .into_iter()
        .map(batch(Activity::Awake))
        .chain(asleep.into_iter().map(batch(Activity::Asleep)))
        .collect()
}

/// The first awake Machine goes alone and shows whether the new config runs at all.
fn split_awake(mut steps: Vec<Step>, settings: Settings, concurrent: usize) -> Vec<Vec<Step>> {
    match settings.strategy {
        Strategy::Immediate => chunks(steps, concurrent),
        Strategy::Rolling => {
            let size = unavailable(settings.max_unavailable, steps.len()).min(concurrent);
            let rest = steps.split_off(steps.len().min(1));
            let mut batches = chunks(steps, 1);
            batches.extend(chunks(rest, size));
            batches
        }
    }
}

fn chunks(steps: Vec<Step>, size: usize) -> Vec<Vec<Step>> {
    steps.chunks(size.max(1)).map(<[Step]>::to_vec).collect()
}

/// At least one, or nothing would ever be updated.
fn unavailable(limit: MaxUnavailable, total: usize) -> usize {
    let count = match limit {
        MaxUnavailable::Count(count) => count as usize,
        MaxUnavailable::Share(share) => (share * total as f64).ceil() as usize,
    };
    count.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        strategy: Strategy::Rolling,
        max_unavailable: MaxUnavailable::Share(0.33),
        concurrent_max: 8,
        availability: Availability::High,
        scope: Scope::Everything,
    };

    fn group(name: &str) -> WantedGroup {
        WantedGroup { name: name.to_owned(), has_services: true, has_mounts: false }
    }

    fn machine(id: &str, group: &str, activity: Activity) -> ObservedMachine {
        ObservedMachine { id: id.to_owned(), group: group.to_owned(), activity }
    }

    fn awake(count: usize) -> Vec<ObservedMachine> {
        (0..count).map(|n| machine(&format!("m{n:02}"), "app", Activity::Awake)).collect()
    }

    fn sizes(plan: &Plan) -> Vec<usize> {
        plan.update.iter().map(|batch| batch.steps.len()).collect()
    }

    #[test]
    fn a_first_deploy_makes_two_machines_for_services_and_a_standby_without_them() {
        let worker = WantedGroup { has_services: false, ..group("worker") };
        let data = WantedGroup { has_mounts: true, ..group("data") };
        let files = WantedGroup { has_services: false, has_mounts: true, ..group("files") };
        let wanted = [group("app"), worker, data, files];
        let spares = |settings| -> Vec<(String, Spare)> {
            let plan = plan(&wanted, &[], settings);
            plan.create.into_iter().map(|new| (new.group, new.spare)).collect()
        };
        let named = |spares: [Spare; 4]| {
            let names = ["app", "data", "files", "worker"].map(str::to_owned);
            names.into_iter().zip(spares).collect::<Vec<_>>()
        };
        let (none, high) = (Spare::None, [Spare::Second, Spare::None, Spare::None, Spare::Standby]);
        assert_eq!(spares(SETTINGS), named(high));
        let single = Settings { availability: Availability::Single, ..SETTINGS };
        assert_eq!(spares(single), named([none; 4]));
    }

    #[test]
    fn two_awake_machines_are_replaced_one_after_the_other() {
        assert_eq!(sizes(&plan(&[group("app")], &awake(2), SETTINGS)), [1, 1]);
    }

    #[test]
    fn batches_after_the_first_are_bounded_by_share_and_by_concurrency() {
        assert_eq!(sizes(&plan(&[group("app")], &awake(10), SETTINGS)), [1, 4, 4, 1]);
        let few = Settings { concurrent_max: 2, ..SETTINGS };
        assert_eq!(sizes(&plan(&[group("app")], &awake(6), few)), [1, 2, 2, 1]);
        let zero = Settings { max_unavailable: MaxUnavailable::Count(0), ..SETTINGS };
        assert_eq!(sizes(&plan(&[group("app")], &awake(3), zero)), [1, 1, 1]);
        let now = Settings { strategy: Strategy::Immediate, ..SETTINGS };
        assert_eq!(sizes(&plan(&[group("app")], &awake(10), now)), [8, 2]);
    }

    #[test]
    fn machines_asleep_come_after_those_awake_and_stay_asleep() {
        let observed =
            [machine("a", "app", Activity::Asleep), machine("b", "app", Activity::Awake)];
        let plan = plan(&[group("app")], &observed, SETTINGS);
        let order: Vec<_> =
            plan.update.iter().map(|b| (b.steps[0].machine.as_str(), b.activity)).collect();
        assert_eq!(order, [("b", Activity::Awake), ("a", Activity::Asleep)]);
        assert_eq!(after_update(Activity::Asleep), AfterUpdate::StayAsleep);
    }

    #[test]
    fn a_group_that_is_gone_is_destroyed_unless_only_updates_are_allowed() {
        let observed = [machine("z", "old", Activity::Awake), machine("a", "app", Activity::Awake)];
        let everything = plan(&[group("app"), group("new")], &observed, SETTINGS);
        assert_eq!(everything.destroy, [Step { group: "old".into(), machine: "z".into() }]);
        assert_eq!(everything.create.len(), 1);
        assert_eq!(everything.leased(), ["a", "z"]);
        let scope = Settings { scope: Scope::UpdateOnly, ..SETTINGS };
        let updates = plan(&[group("app"), group("new")], &observed, scope);
        assert!(updates.destroy.is_empty() && updates.create.is_empty());
        assert_eq!(updates.leased(), ["a"]);
    }

    #[test]
    fn states_are_awake_asleep_or_gone() {
        assert_eq!(Activity::of_state("failed"), Some(Activity::Awake));
        assert_eq!(Activity::of_state("suspended"), Some(Activity::Asleep));
        assert_eq!(Activity::of_state("destroyed"), None);
    }
}
