//! Names inside a private network.

use anyhow::{Result, ensure};
use perch_testkit::Host;

use crate::stage::{AWAKE, SNIPPET, on_host, private_app, run_in_machine, wait_asleep};

#[test]
fn names_answer_by_state_and_kind() {
    on_host(|host| {
        let address = private_app(host, "quotes", SNIPPET)?;
        private_app(host, "caller", AWAKE)?;
        wait_asleep(host, "quotes")?;
        let caller = host.machines("caller")?.remove(0);
        let ask = |name: &str| ask(host, &caller.id, name);

        let flycast = ask("quotes.flycast")?;
        ensure!(flycast.contains(&address), "PN-29, state does not matter: {flycast}");
        let asleep = ask("quotes.internal")?;
        ensure!(!asleep.contains("fdaa:0") && !asleep.contains(":a7b:"), "PN-40: {asleep}");
        let awake = ask("caller.internal")?;
        ensure!(awake.contains(&caller.private_ip), "PN-20: {awake}");
        let one = ask(&format!("{}.vm.caller.internal", caller.id))?;
        ensure!(one.contains(&caller.private_ip), "PN-24: {one}");
        let unknown = ask("nobody.flycast")?;
        ensure!(unknown.contains("NXDOMAIN"), "PN-45: {unknown}");
        Ok(())
    });
}

/// What busybox prints for the AAAA records of a name, asked from a Machine.
pub(crate) fn ask(host: &Host, id: &str, name: &str) -> Result<String> {
    let program = ["busybox", "nslookup", "-type=aaaa", name, "fdaa::3"];
    let output = run_in_machine(host, id, &program)?;
    Ok(format!("{}{}", output.stdout, output.stderr))
}
