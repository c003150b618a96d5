//! The OCI bundle of a run, as data: any OCI runtime can start it.
//!
//! The mount tree is prepared by the shim before (module `stage`): the root, `/sys` and the files that the platform
//! writes are there already. The network namespace is not named: whoever runs the bundle stands in it.

use serde_json::{Value, json};

use crate::cgroup::{Allowance, CPU_PERIOD_US};
use crate::launch::LaunchSpec;
use crate::user::User;

/// Where the init layer has the init binary.
pub(crate) const INIT: &str = "/.perch/init";

/// Search path when neither image nor configuration sets one, as Docker's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Number of user and group ids that a Machine has.
pub(crate) const IDS: u32 = 65_536;

/// What root in a Machine may do in its own user namespace. Docker's list less making devices, raw sockets (its network
/// namespace belongs to the host, they would not work) and writing the audit log.
pub(crate) const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What tells about the host, or lets one guess at its secrets: Docker's list. What a kernel lacks is passed over.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What would change the host: Docker's list. `/sys` is read-only as a whole.
const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The content of `config.json`. `root` is the mounted root directory, `user_namespace` a path to the namespace;
/// `resources` are the limits that the runtime is to set, if any.
pub(crate) fn config(
    spec: &LaunchSpec,
    user: &User,
    root: &str,
    user_namespace: &str,
    resources: Option<Value>,
) -> Value {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": false },
        "hostname": spec.hostname,
        "process": process(spec, user, usual_oom_score()),
        "mounts": mounts(shared_memory(spec.memory_bytes)),
        "linux": {
            "namespaces": [
                { "type": "user", "path": user_namespace },
                { "type": "mount" }, { "type": "pid" }, { "type": "uts" }, { "type": "ipc" },
            ],
            "cgroupsPath": format!("/{}/{}", spec.cgroup_parent, spec.machine),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    if let Some(resources) = resources {
        config["linux"]["resources"] = resources;
    }
    config
}

/// How eagerly the kernel kills the Machine for lack of memory: as eagerly as its keeper, but never less than usual. A
/// server that is protected must not protect the Machines with itself.
pub(crate) fn usual_oom_score() -> i32 {
    oom_score(&std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default())
}

fn oom_score(own: &str) -> i32 {
    own.trim().parse().unwrap_or(0).max(0)
}

fn process(spec: &LaunchSpec, user: &User, oom_score: i32) -> Value {
    let mut args = vec![INIT.to_owned()];
    args.extend_from_slice(&spec.argv);
    // A program that does not run as root gets capabilities by nobody's hand.
    let held = if user.uid == 0 { CAPABILITIES } else { &[] };
    json!({
        "terminal": false,
        "cwd": workdir(spec),
        "args": args,
        "env": environment(spec, user),
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "noNewPrivileges": true,
        "oomScoreAdj": oom_score,
        "capabilities": {
            "bounding": CAPABILITIES, "effective": held, "permitted": held, "inheritable": [], "ambient": [],
        },
    })
}

/// The working directory, absolute.
pub(crate) fn workdir(spec: &LaunchSpec) -> String {
    match spec.workdir.as_str() {
        "" => "/".to_owned(),
        dir if dir.starts_with('/') => dir.to_owned(),
        dir => format!("/{dir}"),
    }
}

/// `NAME=value` entries; the last of a name wins, `PATH` and `HOME` have defaults.
fn environment(spec: &LaunchSpec, user: &User) -> Vec<String> {
    let all = variables(spec, user).into_iter();
    all.map(|(name, value)| format!("{name}={value}")).collect()
}

/// The same as pairs.
pub(crate) fn variables(spec: &LaunchSpec, user: &User) -> Vec<(String, String)> {
    let mut all =
        vec![("PATH".to_owned(), PATH.to_owned()), ("HOME".to_owned(), user.home.clone())];
    for (name, value) in &spec.env {
        match all.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1.clone_from(value),
            None => all.push((name.clone(), value.clone())),
        }
    }
    all
}

/// How much `/dev/shm` may hold: half of the memory, as on a whole machine. Databases put what parallel workers
/// share there, and fail when it is full. It counts as the Machine's memory like everything else.
fn shared_memory(memory_bytes: Option<u64>) -> u64 {
    const LEAST: u64 = 64 << 20;
    memory_bytes.map_or(LEAST, |bytes| LEAST.max(bytes / 2))
}

fn mounts(shared_memory: u64) -> Value {
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777", format!("size={shared_memory}")] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
          "options": ["nosuid", "noexec", "nodev"] },
    ])
}

/// Limits in the words of the bundle.
pub(crate) fn resources(allowance: Allowance) -> Value {
    let mut resources = json!({});
    if let Some(bytes) = allowance.memory_bytes {
        resources["memory"] = json!({ "limit": i64::try_from(bytes).unwrap_or(i64::MAX) });
        if let Some(both) = allowance.memory_and_swap_bytes() {
            resources["memory"]["swap"] = json!(i64::try_from(both).unwrap_or(i64::MAX));
        }
    }
    if let Some(quota) = allowance.cpu_quota_us() {
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD_US });
    }
    if let Some(shares) = allowance.cpu_shares {
        resources["cpu"]["shares"] = json!(shares);
    }
    if let Some(limit) = allowance.pids {
        resources["pids"] = json!({ "limit": i64::try_from(limit).unwrap_or(i64::MAX) });
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::test_spec;

    fn root_user() -> User {
        User { uid: 0, gid: 0, groups: Vec::new(), home: "/root".to_owned() }
    }

    #[test]
    fn the_last_value_of_a_variable_wins() {
        let mut spec = test_spec();
        spec.env =
            vec![("A".into(), "1".into()), ("PATH".into(), "/x".into()), ("A".into(), "2".into())];
        assert_eq!(environment(&spec, &root_user()), ["PATH=/x", "HOME=/root", "A=2"]);
    }

    #[test]
    fn a_program_that_is_not_root_holds_no_capability() {
        let user = User { uid: 1000, ..root_user() };
        let config = config(&test_spec(), &user, "/r", "/u", None);
        assert_eq!(config["process"]["capabilities"]["effective"], json!([]));
    }

    #[test]
    fn a_machine_is_never_protected_from_lack_of_memory() {
        assert_eq!((oom_score("-900\n"), oom_score("0\n"), oom_score("500\n")), (0, 0, 500));
    }

    #[test]
    fn half_of_the_memory_may_be_shared_and_never_less_than_usual() {
        let shared = [None, Some(96 << 20), Some(1 << 30)].map(shared_memory);
        assert_eq!(shared, [64 << 20, 64 << 20, 512 << 20]);
        let options = mounts(512 << 20)[3]["options"].to_string();
        assert!(options.contains("\"size=536870912\""), "{options}");
    }

    #[test]
    fn limits_become_cgroup_settings() {
        let allowance = Allowance {
            memory_bytes: Some(1 << 20),
            swap_bytes: Some(0),
            cpu_millis: Some(500),
            cpu_shares: Some(64),
            pids: Some(64),
        };
        let expected = json!({
            "memory": {"limit": 1_048_576, "swap": 1_048_576},
            "cpu": {"quota": 50_000, "period": 100_000, "shares": 64}, "pids": {"limit": 64},
        });
        assert_eq!(resources(allowance), expected);
    }
}
