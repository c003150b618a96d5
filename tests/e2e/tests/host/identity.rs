//! Who calls, told to Machines: `Fly-Src`, its signature, and the keys that make it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Output, wait_until};
use serde_json::Value;

use crate::stage::{
    AWAKE, SOON, hello_image, machine_processes, on_host, one_machine_of, run_in_machine,
};
use crate::suspend::SUSPENDS;

/// What stands before an Ed25519 key in its DER form (RFC 8410).
const DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const DAY: u64 = 24 * 3600;

/// The public keys that an app's only Machine finds.
fn keys_in(host: &Host, app: &str) -> Result<Vec<String>> {
    let id = host.machines(app)?.pop().context("no Machine")?.id;
    let process = machine_processes(host, &id).pop().context("it does not run")?;
    let text = fs::read_to_string(format!("/proc/{}/root/.fly/fly-src.pub", process.pid))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What a Machine has heard of its caller.
struct Claim {
    value: String,
    signature: String,
}

impl Claim {
    fn of(body: &str) -> Result<Self> {
        let values = |wanted: &str| -> Vec<String> {
            let fields = body.lines().filter_map(|line| line.trim().split_once(": "));
            let meant = fields.filter(|(name, _)| {
                name.eq_ignore_ascii_case(wanted)
                    || name.replace('_', "-").eq_ignore_ascii_case(wanted)
            });
            meant.map(|(_, value)| value.to_owned()).collect()
        };
        match (&*values("fly-src"), &*values("fly-src-signature")) {
            ([value], [signature]) => {
                Ok(Self { value: value.clone(), signature: signature.clone() })
            }
            _ => anyhow::bail!("not one of each: {body}"),
        }
    }

    /// Whether openssl finds the signature good.
    fn is_by(&self, host: &Host, key: &str) -> Result<bool> {
        let write = |name: &str, bytes: &[u8]| -> Result<String> {
            let path: PathBuf = host.dir().join(name);
            fs::write(&path, bytes)?;
            Ok(path.to_string_lossy().into_owned())
        };
        let digits = key.as_bytes().chunks(2).map(|pair| Ok(std::str::from_utf8(pair)?));
        let bytes = digits.map(|pair: Result<_>| Ok(u8::from_str_radix(pair?, 16)?));
        let key = write("key", &[&DER[..], &bytes.collect::<Result<Vec<u8>>>()?].concat())?;
        let (value, text) =
            (write("value", self.value.as_bytes())?, write("text", self.signature.as_bytes())?);
        let signature = host.dir().join("signature").to_string_lossy().into_owned();
        host.run("openssl", &["base64", "-d", "-A", "-in", &text, "-out", &signature])?.ok()?;
        let verify = ["pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", &key, "-rawin"];
        let files = ["-in", &value, "-sigfile", &signature];
        Ok(host.run("openssl", &[&verify[..], &files].concat())?.status.success())
    }

    /// Fails unless somebody who calls so has just called, by the key that signs now.
    fn check(&self, host: &Host, who: &str, key: &str) -> Result<()> {
        let (said, second) = self.value.rsplit_once(";ts=").context("no time")?;
        ensure!(said == who, "{} is not {who}", self.value);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        ensure!(now.abs_diff(second.parse()?) < 30, "{} is old", self.value);
        ensure!(self.is_by(host, key)?, "{} is not signed by {key}", self.value);
        let forged = Self { value: format!("{}0", self.value), signature: self.signature.clone() };
        ensure!(!forged.is_by(host, key)?, "openssl takes everything");
        Ok(())
    }
}

#[test]
fn a_machine_knows_which_machine_calls_by_a_signature_that_openssl_finds_good() {
    on_host(|host| {
        let image = hello_image(host)?;
        one_machine_of(host, "web", &image, AWAKE)?;
        let address = one_machine_of(host, "quotes", &image, AWAKE)?;
        let web = host.machines("web")?.pop().context("no Machine")?.id;
        let keys = keys_in(host, "quotes")?;
        ensure!(keys.len() == 1 && keys == keys_in(host, "web")?, "{keys:?}");
        let listed: Value = serde_json::from_str(&perch_keys(host, &["list", "--json"])?.ok()?)?;
        ensure!(listed[0]["public"] == keys[0] && listed[0]["signs"] == true, "{listed}");

        let who = format!("instance={web};app=web;org=personal");
        let url = format!("http://[{address}]/headers");
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let lies = ["-H", "Fly-Src: instance=x;app=boss;org=x;ts=1", "-H", "Fly_Src: x"];
            let more = ["-H", "fly-src-signature: x", "-H", "FLY_SRC_SIGNATURE: x", &url];
            let call = [&["curl", "-sS", "-m", "20", version][..], &lies, &more].concat();
            let told = run_in_machine(host, &web, &call)?.ok()?;
            Claim::of(&told)?.check(host, &who, &keys[0]).context(version)?;
        }
        let told = host.get(&address, 80, "/headers")?;
        Claim::of(&told.body)?.check(host, "peer=host;org=personal", &keys[0])
    });
}

#[test]
fn a_rotation_shows_both_keys_to_machines_that_sleep_and_outlives_the_server() {
    on_host(|host| {
        let image = hello_image(host)?;
        let address = one_machine_of(host, "quotes", &image, SUSPENDS)?;
        host.wait_all("quotes", "suspended", SOON)?;
        let old = keys_in(host, "quotes")?;
        perch_keys(host, &["rotate"])?.ok()?;
        let both = keys_in(host, "quotes")?;
        ensure!(both.len() == 2 && both[0] == old[0], "{both:?} after {old:?}");
        let refused = perch_keys(host, &["rotate"])?.fails()?;
        ensure!(refused.contains("a rotation is under way until"), "{refused}");
        let claim = Claim::of(&host.get(&address, 80, "/headers")?.body)?;
        claim.check(host, "peer=host;org=personal", &both[0])?;

        // Half a day later, and a whole one.
        for (age, signs, count) in [(DAY / 2, &both[1], 2), (DAY, &both[1], 1)] {
            host.stop_server()?;
            backdate(host, age)?;
            host.start_server()?;
            let claim = Claim::of(&host.get(&address, 80, "/headers")?.body)?;
            claim.check(host, "peer=host;org=personal", signs)?;
            let shown = keys_in(host, "quotes")?;
            ensure!(shown.len() == count && shown[0] == *signs, "{shown:?}");
        }
        wait_until("the old key is forgotten", SOON, || {
            let is_alone = !fs::read_to_string(key_file(host))?.contains("former");
            Ok(is_alone.then_some(()))
        })?;

        perch_keys(host, &["rotate", "--now"])?.ok()?;
        let alone = keys_in(host, "quotes")?;
        ensure!(alone.len() == 1 && !both.contains(&alone[0]), "{alone:?}");
        wait_until("the new key signs", SOON, || {
            let claim = Claim::of(&host.get(&address, 80, "/headers")?.body)?;
            Ok(claim.is_by(host, &alone[0])?.then_some(()))
        })
    });
}

fn perch_keys(host: &Host, args: &[&str]) -> Result<Output> {
    let data = host.data_dir().to_string_lossy().into_owned();
    host.perch(&[&["keys"], args, &["--data-dir", &data]].concat())
}

fn key_file(host: &Host) -> PathBuf {
    host.data_dir().join("fly-src.key")
}

/// Lets a rotation have begun so many seconds ago.
fn backdate(host: &Host, age: u64) -> Result<()> {
    let path = key_file(host);
    let mut kept: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    kept["former"]["since"] = Value::from(now - age);
    // In place: the file stays for root alone.
    fs::write(&path, kept.to_string()).context("writing the keys")
}
