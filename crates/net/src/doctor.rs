//! Can this host carry a plane and Machines? Each check tries the thing itself where it can.
//!
//! Everything happens in namespaces made for the check, which vanish with their threads.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::access::{self, HostAccess};
use crate::address::Prefix;
use crate::error::NetError;
use crate::netlink::Socket;
use crate::nft::{Batch, Hook, NFPROTO_IPV6, Rule};
use crate::plane::{CallLimits, PlaneConfig};
use crate::{firewall, namespace, route, sys};

/// Nothing but this check uses the name, and only in a namespace of its own.
const SCRATCH: &str = "perch_doctor";

const CGROUPS: &str = "/sys/fs/cgroup";

/// What limits Machines where there is no v2; without it none starts.
const V1_LIMITS: [&str; 4] = ["memory", "cpu", "pids", "devices"];

/// One finding of [`doctor`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, for example `IPv6`.
    pub name: &'static str,
    /// Whether it is as needed.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do when not `ok`; empty otherwise.
    pub remedy: String,
}

/// Examines the host. Leaves nothing behind; takes some milliseconds.
pub fn doctor() -> Vec<Check> {
    let mut checks = vec![attempt(
        "network namespaces",
        || namespace::create(|| Ok(())).map(drop),
        "run as root (in a container: with CAP_SYS_ADMIN and CAP_NET_ADMIN)",
    )];
    if checks[0].ok {
        checks.extend(network_checks());
    }
    checks.extend([user_namespaces(), overlay(), cgroups(), forwarding()]);
    checks
}

fn network_checks() -> [Check; 5] {
    [
        attempt("IPv6", check_ipv6, "boot without ipv6.disable=1"),
        attempt("veth", check_veth, "install the kernel's module: modprobe veth"),
        attempt("nf_tables", check_nft, "install the kernel's module: modprobe nf_tables"),
        attempt(
            "TPROXY",
            check_tproxy,
            "install the kernel's modules: modprobe nft_tproxy nf_tproxy_ipv4 nf_tproxy_ipv6",
        ),
        attempt(
            "firewall rules",
            check_firewall,
            "install the kernel's modules: modprobe -a nft_ct nft_chain_nat nft_masq nft_reject_inet",
        ),
    ]
}

fn attempt(name: &'static str, work: impl FnOnce() -> Result<(), NetError>, remedy: &str) -> Check {
    match work() {
        Ok(()) => passed(name, "works".to_owned()),
        Err(error) => failed(name, in_words(&error), remedy),
    }
}

fn passed(name: &'static str, detail: String) -> Check {
    Check { name, ok: true, detail, remedy: String::new() }
}

fn failed(name: &'static str, detail: String, remedy: &str) -> Check {
    Check { name, ok: false, detail, remedy: remedy.to_owned() }
}

fn in_words(error: &NetError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn check_ipv6() -> Result<(), NetError> {
    let add_address = || {
        namespace::set_sysctl("ipv6/conf/all/disable_ipv6", "0")?;
        let address = route::only(Ipv6Addr::from_bits(0xfdaa << 112 | 3).into());
        let lo = vec![route::switch_on("lo"), route::add_address(route::LOOPBACK, address)];
        Socket::open_route()?.apply(lo, &[])
    };
    namespace::create(add_address).map(drop)
}

fn check_veth() -> Result<(), NetError> {
    let (far, ()) = namespace::create(|| Ok(()))?;
    let pair = || Socket::open_route()?.apply(vec![route::add_veth("d0", "d1", far.as_fd())], &[]);
    namespace::create(pair).map(drop)
}

fn check_nft() -> Result<(), NetError> {
    with_table(|batch| {
        batch.add_filter("c", Hook::Input, 0);
        batch.add_set(1, firewall::PORTS6);
        batch.add_set(2, firewall::RANGES6);
    })
}

fn check_tproxy() -> Result<(), NetError> {
    with_table(|batch| {
        batch.add_filter("c", Hook::Prerouting, -150);
        let addr = Ipv6Addr::LOCALHOST.octets();
        batch.add_rule(Rule::on("c").v6().proto(crate::nft::TCP).tproxy(NFPROTO_IPV6, &addr, 1));
    })
}

fn with_table(fill: impl FnOnce(&mut Batch<'_>) + Send) -> Result<(), NetError> {
    let commit = || {
        let mut batch = Batch::on(SCRATCH);
        batch.add_table();
        fill(&mut batch);
        batch.commit(&mut Socket::open_netfilter()?)
    };
    namespace::create(commit).map(drop)
}

/// Commits the very rules of the plane and of the host.
fn check_firewall() -> Result<(), NetError> {
    let config = PlaneConfig {
        pin: PathBuf::new(),
        outside: "d0".to_owned(),
        host_link: (Ipv4Addr::new(172, 31, 255, 0), Ipv4Addr::new(172, 31, 255, 1)),
        public_v6: Prefix { addr: Ipv6Addr::from_bits(0x2001_0db8 << 96), len: 32 },
        shared_v4: Ipv4Addr::new(192, 0, 2, 10),
        dns: Ipv6Addr::from_bits(0xfdaa << 112 | 3),
        host_access: HostAccess::Root,
        call_limits: CallLimits { connections_per_second: 1, datagrams_per_second: 1 },
    };
    let commit = || {
        let mut socket = Socket::open_netfilter()?;
        firewall::ensure_plane(&mut socket, &config, &[], &[])?;
        access::ensure(&mut socket, &config.outside, &config.host_access)?;
        firewall::ensure_host(&mut socket, &config)
    };
    namespace::create(commit).map(drop)
}

fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    const LIMIT: &str = "/proc/sys/user/max_user_namespaces";
    match fs::read_to_string(LIMIT) {
        Ok(text) if text.trim() != "0" => passed(NAME, format!("up to {}", text.trim())),
        Ok(_) => failed(NAME, format!("{LIMIT} is 0"), "sysctl -w user.max_user_namespaces=65536"),
        Err(error) => failed(NAME, format!("{LIMIT}: {error}"), "use a kernel with CONFIG_USER_NS"),
    }
}

fn overlay() -> Check {
    attempt("overlay", || namespace::on_thread(mount_overlay), "load the module: modprobe overlay")
}

/// Runs on a thread with a mount namespace of its own, in which a tmpfs covers `/tmp`.
fn mount_overlay() -> Result<(), NetError> {
    let failed = |what: &'static str| move |source| NetError::kernel(what, source);
    sys::unshare_mounts().map_err(|source| NetError::kernel("create a mount namespace", source))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("make the mounts private"))?;
    let none = MountFlags::empty();
    mount("tmpfs", "/tmp", "tmpfs", none, None).map_err(failed("mount a tmpfs"))?;
    for dir in ["lower", "upper", "work", "root"] {
        fs::create_dir(Path::new("/tmp").join(dir))
            .map_err(|source| NetError::kernel("create a directory", source))?;
    }
    let data = c"lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work";
    mount("overlay", "/tmp/root", "overlay", none, Some(data)).map_err(failed("mount an overlay"))
}

fn cgroups() -> Check {
    cgroups_at(Path::new(CGROUPS))
}

/// Without a freezer Machines are suspended all the same, so that is a note and no failure.
fn cgroups_at(root: &Path) -> Check {
    const NAME: &str = "cgroups";
    if root.join("cgroup.controllers").exists() {
        return passed(NAME, "v2".to_owned());
    }
    if root.join("unified/cgroup.procs").exists() {
        return passed(NAME, "v1 with the v2 tree beside it".to_owned());
    }
    let controllers = v1_controllers(root);
    if controllers.is_empty() {
        let detail = format!("nothing is mounted at {CGROUPS}");
        return failed(NAME, detail, &format!("mount -t cgroup2 none {CGROUPS}"));
    }
    let is_missing = |name: &&str| !controllers.iter().any(|it| it == name);
    if let Some(name) = V1_LIMITS.into_iter().find(is_missing) {
        return failed(NAME, format!("v1 without {name}"), &mount_v1(name));
    }
    let note = match is_missing(&"freezer") {
        true => format!("; Machines are suspended by signals until {}", mount_v1("freezer")),
        false => String::new(),
    };
    passed(NAME, format!("v1{note}"))
}

fn mount_v1(name: &str) -> String {
    format!("mkdir -p {CGROUPS}/{name} && mount -t cgroup -o {name} none {CGROUPS}/{name}")
}

/// The controllers that are mounted below `root`, where a directory is called after what is in it, as `cpu,cpuacct`.
fn v1_controllers(root: &Path) -> Vec<String> {
    let dirs = fs::read_dir(root).into_iter().flatten().flatten();
    let mounted = dirs.filter(|dir| dir.path().join("cgroup.procs").exists());
    let names = mounted.filter_map(|dir| dir.file_name().into_string().ok());
    // A tree with only a name, which has no controller, is systemd's.
    let names = names.filter(|name| name != "systemd");
    names.flat_map(|name| name.split(',').map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn forwarding() -> Check {
    const NAME: &str = "IPv4 forwarding";
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    match fs::read_to_string(SWITCH) {
        Ok(text) if text.trim() == "1" => passed(NAME, "on".to_owned()),
        Ok(_) => match fs::OpenOptions::new().write(true).open(SWITCH) {
            Ok(_) => passed(NAME, "off; the server switches it on".to_owned()),
            Err(error) => failed(NAME, format!("off: {error}"), "sysctl -w net.ipv4.ip_forward=1"),
        },
        Err(error) => failed(NAME, format!("{SWITCH}: {error}"), "mount /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree in which these hierarchies are mounted.
    fn check(mounted: &[&str]) -> std::io::Result<Check> {
        let root = tempfile::tempdir()?;
        for dir in mounted {
            fs::create_dir_all(root.path().join(dir))?;
            fs::write(root.path().join(dir).join("cgroup.procs"), "")?;
        }
        Ok(cgroups_at(root.path()))
    }

    #[test]
    fn a_host_without_a_freezer_is_one_and_says_what_it_lacks() -> std::io::Result<()> {
        let found = check(&["memory", "cpu,cpuacct", "pids", "devices", "systemd"])?;
        assert!(found.ok, "{found:?}");
        let said = "v1; Machines are suspended by signals until mkdir -p /sys/fs/cgroup/freezer \
                    && mount -t cgroup -o freezer none /sys/fs/cgroup/freezer";
        assert_eq!(found.detail, said);
        Ok(())
    }

    #[test]
    fn what_limits_machines_must_be_there() -> std::io::Result<()> {
        let found = check(&["memory", "cpu", "devices", "freezer"])?;
        assert!(!found.ok && found.detail == "v1 without pids", "{found:?}");
        assert!(found.remedy.ends_with("mount -t cgroup -o pids none /sys/fs/cgroup/pids"));
        Ok(())
    }

    #[test]
    fn each_layout_is_known_and_none_is_missing() -> std::io::Result<()> {
        let v1 = ["memory", "cpu", "pids", "devices", "freezer"];
        assert_eq!(check(&v1)?.detail, "v1");
        assert_eq!(check(&["memory", "unified"])?.detail, "v1 with the v2 tree beside it");
        for nothing in [&[][..], &["systemd"]] {
            let found = check(nothing)?;
            assert!(!found.ok && found.remedy.contains("mount -t cgroup2"), "{found:?}");
        }
        Ok(())
    }
}
