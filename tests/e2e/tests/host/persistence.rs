//! What was acknowledged is there after everything was killed.

use anyhow::{Result, ensure};
use perch_testkit::Host;

use crate::stage::{AWAKE, SNIPPET, check_answer, on_host, private_app, wait_asleep};

#[test]
fn every_acknowledged_change_survives_the_death_of_everything() {
    on_host(|host| {
        private_app(host, "awake", AWAKE)?;
        let sleeper = private_app(host, "sleeper", SNIPPET)?;
        host.fly(&["apps", "create", "empty"])?.ok()?;
        wait_asleep(host, "sleeper")?;
        let before = picture(host)?;

        host.kill_server()?;
        for process in host.processes() {
            // A child dies with its parent; what is gone already is as good.
            drop(process.kill());
        }
        host.start_server()?;
        ensure!(picture(host)? == before, "before {before:#?}\nafter {:#?}", picture(host)?);
        check_answer(&host.get(&sleeper, 80, "/")?, "")?;
        check_answer(&host.get(&host.flycast("awake")?, 80, "/")?, "")
    });
}

/// Apps, addresses, Machines and their configurations; not states, which follow later.
fn picture(host: &Host) -> Result<Vec<String>> {
    let mut picture = vec![host.fly(&["apps", "list", "--quiet"])?.ok()?];
    for app in ["awake", "sleeper"] {
        picture.push(format!("{:?}", host.ips(app)?));
        for machine in host.machines(app)? {
            let config = &machine.value["config"];
            picture.push(format!("{} {} {config}", machine.id, machine.instance_id));
        }
    }
    Ok(picture)
}
