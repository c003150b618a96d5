//! The server's configuration: a TOML file in which an unknown key is an error with its place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use perch_api::server::Tls;
use serde::Deserialize;

use crate::server::spans::Endpoint;
use crate::size::Size;

/// With less no Machine could start.
const MEMORY_MIN: Size = Size(64 << 20);

/// What an operator may set. Every key has a default; the file may be absent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Region of this host: three lower-case letters (OQ-28).
    pub(crate) region: String,
    /// Slugs of the organizations; the first is the default one. Their networks are closed to each other.
    pub(crate) organizations: Vec<String>,
    /// Idle time before sleep for services that do not say (`auto_stop_after`), such as `"5m"`.
    pub(crate) auto_stop_after: Length,
    /// Domain below which the shared public IPv4 finds apps by their Host header.
    pub(crate) public_domain: String,
    /// First address of the /48 from which public IPv6 addresses are given.
    pub(crate) public_v6: Ipv6Addr,
    /// The IPv4 that public apps share.
    pub(crate) shared_v4: Ipv4Addr,
    /// DNS servers for names outside; empty = those of the host's `/etc/resolv.conf`.
    pub(crate) resolvers: Vec<IpAddr>,
    /// How long a Machine is suspended before its memory goes to swap, such as `"60s"`, or `"off"`.
    pub(crate) page_out_after: MaybeLength,
    /// How much of the host's memory the server may count on, such as `"8GiB"`; all of it unless said.
    pub(crate) memory: Option<Size>,
    /// Memory that stays free as long as a sleeper can give way, such as `"1GiB"` or `"10%"`.
    pub(crate) memory_reserve: Reserve,
    /// Starts of Machines under way at once (DESIGN 4).
    pub(crate) starts_max: u32,
    /// Stopped Machines whose next start is made ready ahead, at most; 0 for none. Each takes up to 1 MB.
    pub(crate) armed_max: u32,
    /// Shims that are spawned before there is a Machine for them, at most; 0 for none. Each takes up to 1 MB.
    pub(crate) blank_max: u32,
    /// Connections that one Machine may have to apps at once; 0 for as many as there are.
    pub(crate) caller_connections_max: u32,
    /// Connections that one Machine may open to apps in a second; 0 for as many as it likes.
    pub(crate) caller_connections_per_second: u32,
    /// Datagrams that one Machine may send to UDP services in a second; 0 for as many as it likes.
    pub(crate) caller_datagrams_per_second: u32,
    /// How long a proxy that was replaced may go on for the connections that it still has.
    pub(crate) upgrade_drain_max: Length,
    /// Whether Machines above their baseline of CPU yield to others (`core::cpu`).
    pub(crate) cpu_yield: bool,
    /// Who on this host may call the default organization's default network (DESIGN 6).
    pub(crate) host_access: HostAccess,
    /// How long an image that nothing refers to is kept after it was pushed.
    pub(crate) image_grace: Length,
    /// What a Machine's own files may take of the disk, in MB, where its configuration has no `rootfs.size_gb`.
    pub(crate) root_disk_mb: u64,
    /// Host ids of Machines' users; those from 2^31 on unless said.
    pub(crate) host_ids: Option<HostIdRange>,
    /// File with the key that seals the secrets of apps, outside the data directory; made at first use.
    pub(crate) secrets_key: Option<PathBuf>,
    /// Where holders of tokens reach the API over TCP; nowhere unless said.
    pub(crate) listen_api: Option<SocketAddr>,
    /// PEM file with the API's certificate, and those between it and its root. With it the API over TCP speaks TLS.
    pub(crate) api_certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub(crate) api_key: Option<PathBuf>,
    /// Where a collector of OpenTelemetry takes spans of wakes, such as `"http://127.0.0.1:4318"`; nowhere unless said.
    pub(crate) otlp_endpoint: Option<Endpoint>,
}

/// Whose processes on this host are the peer `host`. The word `group` means the group of the API's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HostAccess {
    /// Nobody's: the host is no peer.
    None,
    /// Root's.
    Root,
    /// Root's and those of the members of the group `perch`.
    Group,
    /// Everybody's.
    All,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            region: "lcl".to_owned(),
            organizations: vec!["personal".to_owned()],
            auto_stop_after: Length(Duration::from_secs(300)),
            public_domain: "perch.test".to_owned(),
            public_v6: Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0),
            shared_v4: Ipv4Addr::new(192, 0, 2, 10),
            resolvers: Vec::new(),
            page_out_after: MaybeLength(Some(Duration::from_secs(60))),
            memory: None,
            memory_reserve: Reserve::Part(10),
            starts_max: 8,
            armed_max: 16,
            blank_max: 2,
            caller_connections_max: 2_048,
            caller_connections_per_second: 500,
            caller_datagrams_per_second: 10_000,
            upgrade_drain_max: Length(Duration::from_secs(24 * 3600)),
            cpu_yield: false,
            host_access: HostAccess::All,
            image_grace: Length(Duration::from_secs(3600)),
            root_disk_mb: 8 << 10,
            host_ids: None,
            secrets_key: None,
            listen_api: None,
            api_certificate: None,
            api_key: None,
            otlp_endpoint: None,
        }
    }
}

/// A length of time written as text, such as `"90s"` or `"1h30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Length(pub(crate) Duration);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed: perch_api::wire::GoDuration = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(parsed.0))
    }
}

/// The same, or the word `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaybeLength(pub(crate) Option<Duration>);

impl<'de> Deserialize<'de> for MaybeLength {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Self(None));
        }
        let parsed: perch_api::wire::GoDuration = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(Some(parsed.0)))
    }
}

/// Memory that is to stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// Percent of all.
    Part(u64),
    Bytes(Size),
}

impl Reserve {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            return Size::parse(text).map(Self::Bytes);
        };
        match percent.trim().parse() {
            Ok(percent) if percent <= 90 => Ok(Self::Part(percent)),
            Ok(_) | Err(_) => Err(format!("{text:?} is no part from 0% to 90%")),
        }
    }

    /// In bytes of so much memory.
    pub(crate) fn of(self, total: u64) -> u64 {
        match self {
            Self::Part(percent) => total.saturating_mul(percent) / 100,
            Self::Bytes(Size(bytes)) => bytes,
        }
    }
}

impl<'de> Deserialize<'de> for Reserve {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Ids of the host's users and groups, written as text, such as `"100000-1148575"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostIdRange(pub(crate) RangeInclusive<u32>);

impl HostIdRange {
    /// Ids that each app has for itself.
    pub(crate) const PER_APP: u32 = 65_536;
    /// Apps that fit at least: with fewer ranges than apps, some apps share one.
    const APPS_MIN: u32 = 16;

    fn parse(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('-');
        let numbers = numbers.and_then(|(first, last)| {
            Some((first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?))
        });
        let (first, last) = numbers.ok_or("host_ids must be \"FIRST-LAST\", two numbers of ids")?;
        if first < Self::PER_APP {
            return Err(format!(
                "host_ids must begin at {} or above: ids below belong to the host's own users",
                Self::PER_APP
            ));
        }
        if last == u32::MAX {
            return Err(format!("host_ids must end below {last}, which means no id"));
        }
        let least = Self::PER_APP * Self::APPS_MIN;
        if last < first || last - first + 1 < least {
            return Err(format!(
                "host_ids must have at least {least} ids: {} for each app, and apps beyond that share them",
                Self::PER_APP
            ));
        }
        Ok(Self(first..=last))
    }
}

impl<'de> Deserialize<'de> for HostIdRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// With file, line and column when it cannot be read as what it should be.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("could not read the configuration {}", path.display()))?;
        let config: Self = toml_edit::de::from_str(&text).map_err(|error| {
            let place =
                error.span().map_or_else(String::new, |span| line_column(&text, span.start));
            anyhow::anyhow!("{}{place}: {}", path.display(), error.message().trim())
        })?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        check_region(&self.region)?;
        anyhow::ensure!(!self.organizations.is_empty(), "organizations needs at least one slug");
        for slug in &self.organizations {
            slug.parse::<perch_core::ids::OrgSlug>()?;
        }
        let range = Duration::from_millis(100)..=Duration::from_secs(30 * 24 * 3600);
        anyhow::ensure!(
            range.contains(&self.auto_stop_after.0),
            "auto_stop_after must be between 100ms and 720h"
        );
        anyhow::ensure!(
            self.page_out_after.0.is_none_or(|after| range.contains(&after)),
            "page_out_after must be between 100ms and 720h, or \"off\""
        );
        anyhow::ensure!(
            self.memory.is_none_or(|memory| MEMORY_MIN <= memory),
            "memory must be at least {MEMORY_MIN}"
        );
        let grace = Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);
        anyhow::ensure!(
            grace.contains(&self.image_grace.0),
            "image_grace must be between 1s and 8760h; it has to be longer than a push takes"
        );
        anyhow::ensure!(
            self.secrets_key.as_ref().is_none_or(|file| file.is_absolute()),
            "secrets_key must be an absolute path"
        );
        anyhow::ensure!(
            self.api_certificate.is_some() == self.api_key.is_some(),
            "api_certificate and api_key need each other"
        );
        anyhow::ensure!(
            (1..=1 << 30).contains(&self.root_disk_mb),
            "root_disk_mb must be between 1 and 1073741824"
        );
        anyhow::ensure!((1..=64).contains(&self.starts_max), "starts_max must be between 1 and 64");
        anyhow::ensure!(self.armed_max <= 1000, "armed_max must be between 0 and 1000");
        anyhow::ensure!(self.blank_max <= 64, "blank_max must be between 0 and 64");
        Ok(())
    }

    /// Certificate and key for the API over TCP; both or neither.
    ///
    /// # Errors
    /// When they cannot be used, or everybody on this host could read the key.
    pub(crate) fn api_tls(&self) -> anyhow::Result<Option<Tls>> {
        let (Some(certificate), Some(key)) = (&self.api_certificate, &self.api_key) else {
            return Ok(None);
        };
        let mode = std::fs::metadata(key)
            .with_context(|| format!("could not look at `api_key` {}", key.display()))?
            .mode();
        anyhow::ensure!(
            mode & 0o007 == 0,
            "everybody may use `api_key` {0}; run: chmod o= {0}",
            key.display()
        );
        let tls = Tls::read(certificate, key);
        Ok(Some(tls.context("the API cannot be secured (`api_certificate`, `api_key`)")?))
    }

    /// Refuses to show tokens to everybody on the way.
    ///
    /// # Errors
    /// When the API would be served beyond this host.
    pub(crate) fn check_api(&self) -> anyhow::Result<()> {
        let Some(address) = self.listen_api else { return Ok(()) };
        anyhow::ensure!(
            address.ip().to_canonical().is_loopback() || self.api_certificate.is_some(),
            "the API cannot listen at {address} without TLS: set `api_certificate` and `api_key` in the \
             configuration to PEM files, or listen at 127.0.0.1 or [::1]"
        );
        Ok(())
    }

    /// Slug of the organization that is meant when none is named.
    pub(crate) fn default_org(&self) -> &str {
        self.organizations.first().map_or("personal", String::as_str)
    }

    /// DNS servers for names outside: the configured ones, else the host's.
    pub(crate) fn upstream_resolvers(&self) -> Vec<SocketAddr> {
        let configured = self.resolvers.iter().copied();
        let addresses: Vec<IpAddr> = if self.resolvers.is_empty() {
            let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            nameservers(&text)
        } else {
            configured.collect()
        };
        addresses.into_iter().map(|address| SocketAddr::new(address, 53)).collect()
    }
}

/// Checks a region code given on the command line or in the file.
///
/// # Errors
/// When it is not three lower-case letters.
pub(crate) fn check_region(region: &str) -> anyhow::Result<()> {
    region.parse::<perch_core::ids::Region>()?;
    Ok(())
}

fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse().ok())
        .collect()
}

fn line_column(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    format!(":{line}:{column}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("it can be written");
        Config::read(file.path()).map_err(|error| format!("{error:#}"))
    }

    fn check_refused(text: &str, words: &[&str]) {
        let error = read(text).expect_err(text);
        for word in words {
            assert!(error.contains(word), "{text}: {error} lacks {word}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_line_and_column() {
        check_refused("region = \"fra\"\n\nregoin = \"x\"\n", &[":3:1", "regoin"]);
    }

    #[test]
    fn wrong_values_are_named_with_their_place_or_remedy() {
        check_refused("region = 7\n", &[":1:10", "string"]);
        check_refused("region = \"Frankfurt\"\n", &["Frankfurt", "three lower-case letters"]);
        check_refused("auto_stop_after = \"5 minutes\"\n", &[":1:19", "300ms"]);
        check_refused("auto_stop_after = \"1ms\"\n", &["100ms"]);
        check_refused("organizations = []\n", &["at least one"]);
        check_refused("image_grace = \"0s\"\n", &["image_grace", "1s"]);
        check_refused("image_grace = 60\n", &[":1:15", "string"]);
        let words = &[":2:15", "wheel", "`none`", "`root`", "`group`", "`all`"];
        check_refused("\nhost_access = \"wheel\"\n", words);
        check_refused("host_access = true\n", &[":1:15"]);
        check_refused("host_ids = 100000\n", &[":1:12", "string"]);
        check_refused("host_ids = \"100000\"\n", &[":1:12", "FIRST-LAST"]);
        check_refused("host_ids = \"1000-9999999\"\n", &[":1:12", "65536 or above"]);
        check_refused("host_ids = \"100000-200000\"\n", &[":1:12", "1048576 ids"]);
        check_refused("host_ids = \"200000-100000\"\n", &[":1:12", "1048576 ids"]);
        check_refused("host_ids = \"100000-4294967295\"\n", &[":1:12", "end below"]);
        check_refused("api_key = \"/k\"\n", &["api_certificate", "need each other"]);
        check_refused("listen_api = \"localhost\"\n", &[":1:14"]);
        check_refused("otlp_endpoint = \"https://127.0.0.1\"\n", &[":1:17", "collector"]);
        check_refused("otlp_endpoint = 4318\n", &[":1:17", "string"]);
        check_refused("secrets_key = \"key\"\n", &["secrets_key", "absolute"]);
        check_refused("= 1\n", &[":1:1"]);
    }

    #[test]
    fn beyond_this_host_the_api_needs_a_certificate() {
        let config = |address: &str, more: &str| {
            read(&format!("listen_api = \"{address}\"\n{more}")).expect("well formed").check_api()
        };
        let pair = "api_certificate = \"/c\"\napi_key = \"/k\"\n";
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            let error = config(address, "").expect_err(address).to_string();
            assert!(error.contains("api_certificate") && error.contains(address), "{error}");
            config(address, pair).expect(address);
        }
        for address in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            config(address, "").expect(address);
        }
    }

    #[test]
    fn ids_of_the_host_are_a_range() {
        let config = read("host_ids = \"100000-1148575\"\n").expect("valid");
        assert_eq!(config.host_ids, Some(HostIdRange(100_000..=1_148_575)));
    }

    #[test]
    fn memory_is_kept_free_by_amount_or_part() {
        let reserve = |text: &str| Reserve::parse(text).map(|reserve| reserve.of(1000));
        assert_eq!(reserve("10%"), Ok(100));
        assert_eq!(reserve("1KiB"), Ok(1024));
        for bad in ["91%", "-1%", "x%", "%", "much"] {
            assert!(reserve(bad).is_err(), "{bad}");
        }
        let off = read("page_out_after = \"off\"\nmemory = \"1GiB\"\n").expect("valid");
        assert_eq!((off.page_out_after.0, off.memory), (None, Some(Size(1 << 30))));
        assert!(read("memory = \"1MiB\"\n").is_err(), "no Machine could start");
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(read("").expect("valid"), Config::default());
    }

    #[test]
    fn who_on_the_host_may_call_is_one_of_four_words() {
        use HostAccess::{All, Group, None, Root};
        for (word, access) in [("none", None), ("root", Root), ("group", Group), ("all", All)] {
            let config = read(&format!("host_access = \"{word}\"\n")).expect("valid");
            assert_eq!(config.host_access, access);
        }
    }

    #[test]
    fn nameservers_of_the_host_are_found_among_other_lines() {
        let text = "# x\nsearch a\nnameserver 10.0.0.1\n nameserver fe80::1%eth0\nnameserver ::1\n";
        assert_eq!(nameservers(text).len(), 2);
    }
}
