//! What a Machine finds inside: files of its config.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Output, wait_until};

use crate::exec::SERVES;
use crate::stage::{AWAKE, SOON, on_host, private_app_of, shell_image};

/// Nothing else on the host has these bytes.
const VALUE: &str = "hunter2-of-a-secret-file";

/// Runs a script in the only Machine.
fn inside(host: &Host, script: &str) -> Result<Output> {
    let id = host.machines("web")?.first().context("no Machine")?.id.clone();
    host.fly(&["machine", "exec", &id, &format!("sh -c '{script}'"), "-a", "web"])
}

fn check(host: &Host, script: &str, says: &str) -> Result<()> {
    let ran = inside(host, script)?;
    ensure!(ran.status.success() && ran.stdout == says, "{script}: {ran}");
    Ok(())
}

/// Whether some file below the test's directory has the bytes; sparse and special ones are passed over.
fn is_on_disk(host: &Host, bytes: &str) -> Result<bool> {
    let found = host.run("grep", &["-rlsF", bytes, &host.data_dir().to_string_lossy()])?;
    Ok(!found.stdout.is_empty())
}

#[test]
fn files_are_there_before_the_program_and_secret_ones_are_on_no_disk() {
    on_host(|host| {
        let image = shell_image(host, "serves", SERVES)?;
        let files = "\
[[files]]
  guest_path = '/etc/app/plain.conf'
  raw_value = 'aGVsbG8K'
[[files]]
  guest_path = '/etc/app/local'
  local_path = 'local.txt'
[[files]]
  guest_path = '/etc/app/secret'
  secret_name = 'KEY'
";
        let sections = format!("{files}\n{AWAKE}");
        let dir = host.app_dir("web", &crate::stage::fly_toml("web", &image, &sections))?;
        host.fly(&["apps", "create", "web"])?.ok()?;
        // In base64, as a secret for a file is.
        let value = "aHVudGVyMi1vZi1hLXNlY3JldC1maWxl";
        host.fly(&["secrets", "set", "--stage", &format!("KEY={value}"), "-a", "web"])?.ok()?;
        let refused = host.fly_in(&dir, &["deploy", "--ha=false"])?.fails()?;
        ensure!(refused.contains("could not read file local.txt"), "{refused}");
        std::fs::write(dir.join("local.txt"), "of mine")?;
        host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
        check(
            host,
            "cat /etc/app/plain.conf /etc/app/local /etc/app/secret",
            &format!("hello\nof mine{VALUE}"),
        )?;
        check(
            host,
            "stat -c \"%a %u %n\" /etc/app/*",
            "644 0 /etc/app/local\n644 0 /etc/app/plain.conf\n644 0 /etc/app/secret\n",
        )?;
        ensure!(!is_on_disk(host, VALUE)?, "the secret is on the disk");
        ensure!(is_on_disk(host, "of mine")?, "nothing would be found");
        // As often as it starts, also under a new server.
        host.kill_server()?;
        host.start_server()?;
        check(host, "cat /etc/app/secret; echo changed >/etc/app/plain.conf", VALUE)?;
        let id = host.machines("web")?[0].id.clone();
        host.fly(&["machine", "stop", &id, "-w", "30s"])?.ok()?;
        host.fly(&["machine", "start", &id])?.ok()?;
        host.wait_all("web", "started", SOON)?;
        check(host, "cat /etc/app/plain.conf /etc/app/secret", &format!("hello\n{VALUE}"))
    });
}

#[test]
fn files_that_cannot_be_are_refused_and_none_leaves_the_root_or_replaces_init() {
    on_host(|host| {
        let image = shell_image(host, "serves", SERVES)?;
        private_app_of(host, "web", &image, AWAKE)?;
        let image = host.api("/v1/apps/web/machines")?[0]["config"]["image"].clone();
        let create = |file: &str| {
            let body = format!(
                r#"{{"config": {{"image": {image}, "files": [{file}], "restart": {{"policy": "no"}}}}}}"#
            );
            host.request("POST", "/v1/apps/web/machines", "application/json", body.as_bytes())
        };
        for file in [
            r#"{"guest_path": "x", "raw_value": ""}"#,
            r#"{"guest_path": "/../x", "raw_value": ""}"#,
            r#"{"guest_path": "/x"}"#,
            r#"{"guest_path": "/x", "raw_value": "?"}"#,
            r#"{"guest_path": "/x", "raw_value": "", "mode": 65536}"#,
            r#"{"guest_path": "/x", "raw_value": 1}"#,
        ] {
            let answer = create(file)?;
            ensure!(answer.status == 422, "{file}: {answer:?}");
        }
        for (file, why) in [
            (r#"{"guest_path": "/.perch/init", "raw_value": ""}"#, "belongs to the platform"),
            (r#"{"guest_path": "/bin", "raw_value": ""}"#, "the file /bin"),
            (r#"{"guest_path": "/bin/busybox/x", "raw_value": ""}"#, "the file /bin/busybox/x"),
            (r#"{"guest_path": "/x", "secret_name": "NONE"}"#, "not set"),
        ] {
            let made = create(file)?;
            ensure!(made.status == 200, "{file}: {made:?}");
            let id = serde_json::from_str::<serde_json::Value>(&made.body)?["id"].clone();
            let path = format!("/v1/apps/web/machines/{}", id.as_str().context("an id")?);
            wait_until("its failure to say why", SOON, || {
                Ok(host.api(&path)?["events"].to_string().contains(why).then_some(()))
            })
            .with_context(|| format!("{file}: {:?}", host.api(&path)))?;
            let removed =
                host.request("DELETE", &format!("{path}?force=true"), "application/json", b"")?;
            ensure!(removed.status == 200, "{removed:?}");
        }
        Ok(())
    });
}
