//! What a Machine finds when it starts: program, environment, hosts and resolver.

use std::net::Ipv6Addr;

use perch_api::wire::Signal;
use perch_core::address;
use perch_core::ids::NetworkId;
use perch_core::lifecycle::{Policy, RestartPolicy, SleepBy};
use perch_machine::{ImageError, LaunchError, LaunchSpec, RootFile, Unpacked};

use super::guest_files;
use super::limits;
use super::records::{AppRecord, MachineRecord};
use super::world::World;

/// `kill_timeout` where nothing is configured, and the most that is allowed (AS-51).
const KILL_TIMEOUT: (std::time::Duration, std::time::Duration) =
    (std::time::Duration::from_secs(5), std::time::Duration::from_secs(300));
/// How long work in flight may go on before a stop (AS-63).
const DRAIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Why a start failed, twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For everybody who calls the Machine: names nothing of the host.
    pub(crate) told: String,
    /// For the log, and without this host's directories for the Machine's events.
    pub(crate) detail: String,
}

/// What a caller learns where only the host's owner can do something.
const HOST_FAULT: &str = "the host could not start it; its events say why";

impl Failure {
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let told = |cause: &(dyn std::error::Error + 'static)| {
            let launch = cause.downcast_ref::<LaunchError>().map(LaunchError::told);
            launch.or_else(|| cause.downcast_ref::<ImageError>().map(ImageError::told))
        };
        let told = error.chain().find_map(told).unwrap_or_else(|| HOST_FAULT.to_owned());
        Self { told, detail: format!("{error:#}") }
    }

    /// The detail for who may see the Machine, but not the host: paths begin at the data directory.
    pub(crate) fn detail_within(&self, data: &std::path::Path) -> String {
        self.detail.replace(&format!("{}/", data.display()), "")
    }
}

/// A reason for whoever started the Machine, as a start's error.
pub(crate) fn unlaunchable(id: &str) -> impl FnOnce(String) -> LaunchError {
    move |reason| LaunchError::BadSpec { machine: id.to_owned(), reason }
}

/// First address of a network's /48.
pub(crate) fn prefix(network_id: u32) -> Ipv6Addr {
    // A stored id is never 0; 1 is a network like any other and owns nothing of anybody else's.
    address::prefix(NetworkId::new(network_id).unwrap_or(NetworkId::new(1).expect("1 is not 0")))
}

/// Everything the shim needs for one run.
///
/// # Errors
/// When neither image nor config names a program.
pub(crate) fn spec(
    world: &World,
    record: &MachineRecord,
    app: &AppRecord,
    run: u64,
    unpacked: Unpacked,
) -> anyhow::Result<LaunchSpec> {
    let policy = policy(record);
    let limits = limits::of(record);
    Ok(LaunchSpec {
        machine: record.id.clone(),
        run,
        app: record.app.clone(),
        dir: world.paths.machine(&record.id),
        image: record.image.clone(),
        argv: argv(record, &unpacked.config)?,
        env: environment(record, &unpacked.config),
        workdir: unpacked.config.working_dir.clone(),
        user: unpacked.config.user.clone(),
        layers: unpacked.layers,
        init_layer: world.init_layer.clone(),
        hostname: record.id.clone(),
        private_ip: Some(record.private_ip),
        files: files(record).into_iter().chain(guest_files::plain(record)).collect(),
        inside: None,
        volumes: super::volumes::for_run(world, record),
        uid_base: world.host_ids.base(app.uid_slot),
        ids: world.images.ids(),
        memory_bytes: Some(limits.memory_bytes),
        swap_bytes: Some(limits.swap_bytes),
        cpu_millis: Some(limits.cpu_millis),
        cpu_shares: Some(limits.cpu_shares),
        pids_max: Some(limits.pids),
        kill_signal: policy.kill_signal,
        kill_timeout_ms: u64::try_from(policy.kill_timeout.as_millis()).unwrap_or(u64::MAX),
        cgroup_parent: world.cgroup_parent.clone(),
    })
}

/// The program: `exec` replaces everything, `entrypoint` and `cmd` what the image says (MA-45).
///
/// # Errors
/// When nothing is left to run.
pub(crate) fn argv(
    record: &MachineRecord,
    image: &perch_machine::ImageConfig,
) -> Result<Vec<String>, perch_machine::ImageError> {
    let view = record.config.view();
    let init = &view.init;
    if !init.exec.is_empty() {
        return Ok(init.exec.clone());
    }
    let given = |list: &'_ Vec<String>| (!list.is_empty()).then(|| list.clone());
    image.argv(given(&init.entrypoint).as_deref(), given(&init.cmd).as_deref())
}

/// Variables that the platform sets; secrets cannot.
pub(crate) const PLATFORM_VARIABLES: [&str; 9] = [
    "FLY_APP_NAME",
    "FLY_REGION",
    "FLY_PROCESS_GROUP",
    "FLY_MACHINE_ID",
    "FLY_ALLOC_ID",
    "FLY_MACHINE_VERSION",
    "FLY_IMAGE_REF",
    "FLY_VM_MEMORY_MB",
    "FLY_PRIVATE_IP",
];

/// The image's environment, then the config's, then the platform's, which wins (fly-semantics 5.8). Secrets, which win over
/// the first two, go another way.
fn environment(
    record: &MachineRecord,
    image: &perch_machine::ImageConfig,
) -> Vec<(String, String)> {
    let view = record.config.view();
    let pair = |text: &String| {
        text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let mut env: Vec<(String, String)> = image.env.iter().filter_map(pair).collect();
    env.extend(view.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let memory = view.guest.clone().unwrap_or_default().memory_mb;
    let own = [
        record.app.clone(),
        record.region.clone(),
        record.group(),
        record.id.clone(),
        record.id.clone(),
        record.instance_id.clone(),
        view.image.clone(),
        memory.to_string(),
        record.private_ip.to_string(),
    ];
    env.extend(PLATFORM_VARIABLES.map(str::to_owned).into_iter().zip(own));
    env
}

/// `/etc/hosts` and `/etc/resolv.conf` (PN-07).
fn files(record: &MachineRecord) -> Vec<RootFile> {
    let (id, ip) = (&record.id, record.private_ip);
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\tfly-local-6pn {id}\n"
    );
    let resolver = format!("nameserver {}\n", address::RESOLVER);
    let file = |path: &str, content: String| RootFile {
        path: path.to_owned(),
        content: content.into_bytes(),
        mode: 0o644,
    };
    vec![
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", resolver),
        file("/etc/hostname", format!("{id}\n")),
    ]
}

/// How a Machine is stopped and brought back.
pub(crate) fn policy(record: &MachineRecord) -> Policy {
    use perch_api::wire::RestartPolicy as Word;
    let view = record.config.view();
    let timeout = view.stop_config.timeout.map_or(KILL_TIMEOUT.0, |length| length.0);
    let restart = view.restart.as_ref();
    let retries_max = restart.and_then(|it| it.max_retries).filter(|count| *count > 0);
    Policy {
        kill_signal: view.stop_config.signal.unwrap_or(Signal::INT).number(),
        kill_timeout: timeout.min(KILL_TIMEOUT.1),
        drain_timeout: DRAIN_TIMEOUT,
        restart: match restart.map(|it| it.policy).unwrap_or_default() {
            Word::No => RestartPolicy::No,
            Word::Always => RestartPolicy::Always,
            Word::OnFailure => RestartPolicy::OnFailure {
                retries_max: retries_max.unwrap_or(perch_core::lifecycle::RETRIES_DEFAULT),
            },
        },
        sleep: sleep_by(&view.services),
    }
}

/// AS-65: suspend is for a Machine all of whose services say so.
fn sleep_by(services: &[perch_api::wire::Service]) -> SleepBy {
    let suspends = services.iter().all(|it| it.autostop == perch_api::wire::Autostop::Suspend);
    if suspends && !services.is_empty() { SleepBy::Suspending } else { SleepBy::Stopping }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: anyhow::Error, told: &str) {
        let failure = Failure::of(&error.context("step"));
        assert!(failure.told.contains(told), "{failure:?}");
        assert!(!failure.told.contains("/data"), "{failure:?}");
        let detail = failure.detail_within(std::path::Path::new("/data"));
        assert!(detail.contains("step") && !detail.contains("/data"), "{detail}");
    }

    fn io(kind: std::io::ErrorKind) -> LaunchError {
        let path = "/data/machines/m/spec.json".into();
        LaunchError::Io { doing: "write", path, source: kind.into() }
    }

    #[test]
    fn callers_learn_why_a_start_failed_but_nothing_of_the_host() {
        use perch_machine::Fault;
        let failed = |reason: &str, fault| LaunchError::Failed {
            machine: "m".to_owned(),
            reason: reason.to_owned(),
            fault,
        };
        check(io(std::io::ErrorKind::StorageFull).into(), "no space is left");
        check(io(std::io::ErrorKind::PermissionDenied).into(), "the host could not");
        check(failed("\"/x\" is missing", Fault::Image).into(), "\"/x\" is missing");
        check(failed("could not make /data/fs", Fault::DiskFull).into(), "no space is left");
        check(failed("could not make /data/fs", Fault::Host).into(), "the host could not");
        check(ImageError::NoCommand.into(), "no entrypoint");
        let (doing, path) = ("make", "/data/images/scratch/x".into());
        let source = std::io::ErrorKind::StorageFull.into();
        check(ImageError::Io { doing, path, source }.into(), "no space is left");
        check(anyhow::anyhow!("no link for /data/x"), "the host could not");
    }
}
