//! Which boots there are to be: scenarios on the same kind of machine share one.

use std::fmt;

use clap::ValueEnum;

use super::{Machine, Scenario};

/// How the names of scenarios begin that measure: they have a command of their own, and no verdict.
const FIGURES: &str = "figures";

/// What memory mapped from a guest can do to a kernel, and a kernel to it, depends on the kind and the kernel of dom0.
const MACHINE_MATTERS: [&str; 3] = ["main", "kill", "revoke"];

/// One boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) guest: Guest,
    pub(super) kernel: Kernel,
    pub(super) dom0: Dom0,
    /// By name, in the order in which they run.
    pub(super) scenarios: Vec<String>,
}

/// What all boots of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) rounds: u32,
    pub(super) deterministic: bool,
    /// How long a scenario may take; the laboratory's choice if none.
    pub(super) seconds: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Guest {
    /// Paravirtualised: no hardware virtualisation, XenStore and grants through hypercalls
    Pv,
    /// Hardware virtualisation with the paravirtual interfaces
    Pvh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kernel {
    /// The kernel of Debian 12
    #[value(name = "6.1")]
    Linux6_1,
    /// The newer one that Debian's security updates offer
    #[value(name = "6.12")]
    Linux6_12,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dom0 {
    /// Paravirtualised, as on most hosts
    Pv,
    /// With hardware virtualisation; Xen 4.17 calls it experimental
    Pvh,
}

impl Guest {
    pub(super) fn name(self) -> &'static str {
        match self {
            Guest::Pv => "pv",
            Guest::Pvh => "pvh",
        }
    }
}

impl Kernel {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kernel::Linux6_1 => "6.1",
            Kernel::Linux6_12 => "6.12",
        }
    }
}

impl Dom0 {
    pub(super) fn name(self) -> &'static str {
        match self {
            Dom0::Pv => "pv",
            Dom0::Pvh => "pvh",
        }
    }
}

impl Boot {
    fn new(guest: Guest, kernel: Kernel, scenarios: &[String]) -> Self {
        Self {
            guest,
            kernel,
            dom0: Dom0::Pv,
            scenarios: scenarios.to_vec(),
        }
    }

    /// A name for a folder.
    pub(super) fn folder(&self) -> String {
        let dom0 = match self.dom0 {
            Dom0::Pv => "",
            Dom0::Pvh => "-dom0-pvh",
        };
        format!("{}-{}{dom0}", self.guest.name(), self.kernel.name())
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} guests, {}", self.guest.name(), self.kernel.name())?;
        if self.dom0 == Dom0::Pvh {
            write!(f, ", pvh dom0")?;
        }
        Ok(())
    }
}

/// What CI runs: both kinds of guest and both kernels in two boots.
pub(super) fn ci(known: &[Scenario]) -> Vec<Boot> {
    let scenarios: Vec<_> = known
        .iter()
        .filter(|scenario| scenario.ci)
        .map(|scenario| scenario.name.clone())
        .collect();
    vec![
        Boot::new(Guest::Pv, Kernel::Linux6_1, &scenarios),
        Boot::new(Guest::Pvh, Kernel::Linux6_12, &scenarios),
    ]
}

/// Everything. What depends on the kind of machine beyond that of the guest runs on the other machines, too.
pub(super) fn all(known: &[Scenario], machine: Machine) -> Vec<Boot> {
    let names: Vec<_> = known
        .iter()
        .map(|scenario| scenario.name.clone())
        .filter(|name| !name.starts_with(FIGURES))
        .collect();
    if machine.guest.is_some() || machine.kernel.is_some() || machine.dom0.is_some() {
        return named(&names, machine);
    }
    let machine_matters = MACHINE_MATTERS.map(str::to_owned);
    vec![
        Boot::new(Guest::Pv, Kernel::Linux6_1, &names),
        Boot::new(Guest::Pvh, Kernel::Linux6_12, &names),
        Boot::new(Guest::Pv, Kernel::Linux6_12, &machine_matters),
        Boot::new(Guest::Pvh, Kernel::Linux6_1, &machine_matters),
        Boot {
            dom0: Dom0::Pvh,
            ..Boot::new(Guest::Pv, Kernel::Linux6_1, &machine_matters)
        },
    ]
}

/// The scenarios on the machine that was asked for.
pub(super) fn named(scenarios: &[String], machine: Machine) -> Vec<Boot> {
    let guests = machine
        .guest
        .map_or(vec![Guest::Pv, Guest::Pvh], |guest| vec![guest]);
    guests
        .into_iter()
        .map(|guest| Boot {
            dom0: machine.dom0.unwrap_or(Dom0::Pv),
            ..Boot::new(guest, machine.kernel.unwrap_or(Kernel::Linux6_1), scenarios)
        })
        .collect()
}

/// A boot for a person.
pub(super) fn shell(machine: Machine) -> (Boot, Setting) {
    let boot = Boot {
        dom0: machine.dom0.unwrap_or(Dom0::Pv),
        ..Boot::new(
            machine.guest.unwrap_or(Guest::Pv),
            machine.kernel.unwrap_or(Kernel::Linux6_1),
            &["shell".into()],
        )
    };
    let setting = Setting {
        rounds: super::ROUNDS,
        deterministic: machine.deterministic,
        seconds: None,
    };
    (boot, setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Machine = Machine {
        guest: None,
        kernel: None,
        dom0: None,
        deterministic: false,
    };

    fn known() -> Vec<Scenario> {
        [
            ("figures", false),
            ("kill", true),
            ("limits", false),
            ("main", true),
        ]
        .map(|(name, ci)| Scenario {
            name: name.into(),
            about: String::new(),
            ci,
        })
        .into()
    }

    fn shown(plan: &[Boot]) -> Vec<String> {
        plan.iter()
            .map(|boot| format!("{boot}: {}", boot.scenarios.join(" ")))
            .collect()
    }

    #[test]
    fn ci_runs_its_scenarios_on_both_kinds_of_guest_and_both_kernels() {
        assert_eq!(
            shown(&ci(&known())),
            ["pv guests, 6.1: kill main", "pvh guests, 6.12: kill main"]
        );
    }

    #[test]
    fn all_runs_everything_twice_and_what_the_machine_matters_to_on_every_machine() {
        let everything = "kill limits main";
        assert_eq!(
            shown(&all(&known(), ANY)),
            [
                format!("pv guests, 6.1: {everything}"),
                format!("pvh guests, 6.12: {everything}"),
                "pv guests, 6.12: main kill revoke".into(),
                "pvh guests, 6.1: main kill revoke".into(),
                "pv guests, 6.1, pvh dom0: main kill revoke".into(),
            ]
        );
    }

    #[test]
    fn what_was_asked_for_restricts_all() {
        let machine = Machine {
            guest: Some(Guest::Pvh),
            ..ANY
        };
        assert_eq!(
            shown(&all(&known(), machine)),
            ["pvh guests, 6.1: kill limits main"]
        );
    }
}
