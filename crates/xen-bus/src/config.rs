//! The one line that describes a device (binding section 2), the same in xl.cfg, on the command
//! line and in XenStore: `type=blk,mode=rw,serial=root,queues=4,path=/srv/a.img`.
//!
//! `path=` takes the rest of the line, as `target=` of xl does. What a type means, whether the path
//! exists and where a missing uuid comes from is not decided here.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Bytes of the longest line: what fits into one XenStore value with room for its path.
pub const MAX_LINE: usize = 2048;

/// Bytes of the longest serial: what a block device has room for (VIRTIO_BLK_T_GET_ID).
pub const MAX_SERIAL: usize = 20;

/// The most queues that a line may ask for. Each costs the backend a ring and a share of a loop;
/// a device may allow fewer.
pub const MAX_QUEUES: u16 = 256;

/// Bytes of the longest name of a device type.
const MAX_TYPE: usize = 16;

/// Whether the driver may write to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `ro`
    ReadOnly,
    /// `rw`
    #[default]
    ReadWrite,
}

/// What a device is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceConfig {
    /// `type`: the name of a device type, such as `blk`.
    pub device_type: String,
    /// `mode`: rw if absent.
    pub mode: Mode,
    /// `serial`: printable, up to [`MAX_SERIAL`] bytes, no comma.
    pub serial: Option<String>,
    /// `queues`: 1 if absent.
    pub queues: u16,
    /// `direct`: past the page cache of the host. 0 if absent.
    pub direct: bool,
    /// `uuid`
    pub uuid: Option<Uuid>,
    /// `path`: a file or a device of the host.
    pub path: Option<String>,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Longer than [`MAX_LINE`].
    #[error("the line has {0} bytes, at most {MAX_LINE} are allowed")]
    TooLong(usize),
    /// A part between commas that has no `=`.
    #[error("\"{0}\" is not of the form key=value")]
    NoValue(String),
    /// A key that the grammar does not have.
    #[error(
        "key \"{0}\" is not known; there are type, mode, serial, queues, direct, uuid and path"
    )]
    UnknownKey(String),
    /// A key that stands twice.
    #[error("key \"{0}\" stands twice")]
    Twice(&'static str),
    /// A value that the key cannot have.
    #[error("{key}={got} is not possible: {expected} expected")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        got: String,
        /// What it may be.
        expected: &'static str,
    },
    /// There is no `type=`.
    #[error("type= is missing, for example type=blk")]
    NoType,
}

impl DeviceConfig {
    /// A device of a type, all else as if absent.
    #[must_use]
    pub fn new(device_type: &str) -> Self {
        Self {
            device_type: device_type.into(),
            mode: Mode::default(),
            serial: None,
            queues: 1,
            direct: false,
            uuid: None,
            path: None,
        }
    }
}

impl FromStr for DeviceConfig {
    type Err = ConfigError;

    fn from_str(line: &str) -> Result<Self, ConfigError> {
        if line.len() > MAX_LINE {
            return Err(ConfigError::TooLong(line.len()));
        }
        let mut values = Values::default();
        let mut rest = Some(line);
        while let Some(text) = rest {
            if let Some(path) = text.strip_prefix("path=") {
                values.set("path", path)?;
                break;
            }
            let (item, next) = match text.split_once(',') {
                Some((item, next)) => (item, Some(next)),
                None => (text, None),
            };
            let (key, value) = item
                .split_once('=')
                .ok_or_else(|| ConfigError::NoValue(item.into()))?;
            values.set(key, value)?;
            rest = next;
        }
        values.finish()
    }
}

impl fmt::Display for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type={},mode={}", self.device_type, self.mode)?;
        if let Some(serial) = &self.serial {
            write!(f, ",serial={serial}")?;
        }
        write!(f, ",queues={}", self.queues)?;
        if self.direct {
            write!(f, ",direct=1")?;
        }
        if let Some(uuid) = &self.uuid {
            write!(f, ",uuid={uuid}")?;
        }
        if let Some(path) = &self.path {
            write!(f, ",path={path}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::ReadOnly => "ro",
            Mode::ReadWrite => "rw",
        })
    }
}

/// The values found so far.
#[derive(Default)]
struct Values {
    device_type: Option<String>,
    mode: Option<Mode>,
    serial: Option<String>,
    queues: Option<u16>,
    direct: Option<bool>,
    uuid: Option<Uuid>,
    path: Option<String>,
}

impl Values {
    fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        match key {
            "type" => put(&mut self.device_type, "type", device_type(value)?),
            "mode" => put(&mut self.mode, "mode", mode(value)?),
            "serial" => put(&mut self.serial, "serial", serial(value)?),
            "queues" => put(&mut self.queues, "queues", queues(value)?),
            "direct" => put(&mut self.direct, "direct", direct(value)?),
            "uuid" => put(&mut self.uuid, "uuid", uuid(value)?),
            "path" => put(&mut self.path, "path", path(value)?),
            other => Err(ConfigError::UnknownKey(other.into())),
        }
    }

    fn finish(self) -> Result<DeviceConfig, ConfigError> {
        Ok(DeviceConfig {
            device_type: self.device_type.ok_or(ConfigError::NoType)?,
            mode: self.mode.unwrap_or_default(),
            serial: self.serial,
            queues: self.queues.unwrap_or(1),
            direct: self.direct.unwrap_or_default(),
            uuid: self.uuid,
            path: self.path,
        })
    }
}

fn put<T>(slot: &mut Option<T>, key: &'static str, value: T) -> Result<(), ConfigError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ConfigError::Twice(key)),
    }
}

fn device_type(value: &str) -> Result<String, ConfigError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if value.is_empty() || value.len() > MAX_TYPE || !value.bytes().all(plain) {
        return Err(bad("type", value, "up to 16 of a-z, 0-9 and -"));
    }
    Ok(value.into())
}

fn mode(value: &str) -> Result<Mode, ConfigError> {
    match value {
        "ro" => Ok(Mode::ReadOnly),
        "rw" => Ok(Mode::ReadWrite),
        _ => Err(bad("mode", value, "rw or ro")),
    }
}

fn serial(value: &str) -> Result<String, ConfigError> {
    let plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    if value.is_empty() || value.len() > MAX_SERIAL || !value.bytes().all(plain) {
        return Err(bad("serial", value, "1 to 20 printable ASCII characters"));
    }
    Ok(value.into())
}

fn queues(value: &str) -> Result<u16, ConfigError> {
    xen_types::parse_decimal(value.as_bytes())
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| (1..=MAX_QUEUES).contains(number))
        .ok_or_else(|| bad("queues", value, "1 to 256"))
}

fn direct(value: &str) -> Result<bool, ConfigError> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(bad("direct", value, "0 or 1")),
    }
}

fn uuid(value: &str) -> Result<Uuid, ConfigError> {
    // the crate also takes braces, urn: and forms without hyphens
    Uuid::try_parse(value)
        .ok()
        .filter(|uuid| uuid.to_string() == value)
        .ok_or_else(|| bad("uuid", value, "8-4-4-4-12 lower-case hexadecimal digits"))
}

fn path(value: &str) -> Result<String, ConfigError> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(bad("path", value, "a path without control characters"));
    }
    Ok(value.into())
}

fn bad(key: &'static str, got: &str, expected: &'static str) -> ConfigError {
    ConfigError::Value {
        key,
        got: got.into(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_line_of_the_binding_is_read_and_printed() {
        let line = "type=blk,mode=rw,serial=root,queues=4,path=/srv/a.img";
        let config: DeviceConfig = line.parse().unwrap();
        let expected = DeviceConfig {
            serial: Some("root".into()),
            queues: 4,
            path: Some("/srv/a.img".into()),
            ..DeviceConfig::new("blk")
        };
        assert_eq!(config, expected);
        assert_eq!(config.to_string(), line);
    }

    #[test]
    fn absent_keys_have_their_defaults() {
        let config: DeviceConfig = "type=rng".parse().unwrap();
        assert_eq!(config, DeviceConfig::new("rng"));
        assert_eq!(config.to_string(), "type=rng,mode=rw,queues=1");
    }

    #[test]
    fn a_path_takes_the_rest_of_the_line() {
        let config: DeviceConfig = "type=blk,path=/a,mode=ro,path=b=c".parse().unwrap();
        assert_eq!(config.path.as_deref(), Some("/a,mode=ro,path=b=c"));
        assert_eq!(config.mode, Mode::ReadWrite);
    }

    #[test]
    fn errors_say_which_key_and_what_was_expected() {
        for (line, message) in [
            ("", "\"\" is not of the form key=value"),
            ("type=blk,", "\"\" is not of the form key=value"),
            ("type=blk,ro", "\"ro\" is not of the form key=value"),
            ("mode=rw", "type= is missing, for example type=blk"),
            ("type=blk,type=blk", "key \"type\" stands twice"),
            (
                "type=blk,Mode=rw",
                "key \"Mode\" is not known; there are type, mode, serial, queues, direct, uuid and path",
            ),
            (
                "type=Blk",
                "type=Blk is not possible: up to 16 of a-z, 0-9 and - expected",
            ),
            (
                "type=blk,mode=w",
                "mode=w is not possible: rw or ro expected",
            ),
            (
                "type=blk,queues=0",
                "queues=0 is not possible: 1 to 256 expected",
            ),
            (
                "type=blk,queues=257",
                "queues=257 is not possible: 1 to 256 expected",
            ),
            (
                "type=blk,queues=04",
                "queues=04 is not possible: 1 to 256 expected",
            ),
            (
                "type=blk,direct=yes",
                "direct=yes is not possible: 0 or 1 expected",
            ),
            (
                "type=blk,serial=twenty-one-characters",
                "serial=twenty-one-characters is not possible: \
                 1 to 20 printable ASCII characters expected",
            ),
            (
                "type=blk,uuid=6BA7B810-9DAD-11D1-80B4-00C04FD430C8",
                "uuid=6BA7B810-9DAD-11D1-80B4-00C04FD430C8 is not possible: \
                 8-4-4-4-12 lower-case hexadecimal digits expected",
            ),
            (
                "type=blk,path=",
                "path= is not possible: a path without control characters expected",
            ),
        ] {
            let error = line.parse::<DeviceConfig>().unwrap_err();
            assert_eq!(error.to_string(), message, "{line}");
        }
        let long = format!("type=blk,path={}", "a".repeat(MAX_LINE));
        assert_eq!(
            long.parse::<DeviceConfig>(),
            Err(ConfigError::TooLong(long.len()))
        );
    }

    prop_compose! {
        fn configs()(
            device_type in "[a-z0-9-]{1,16}",
            read_only: bool,
            serial in proptest::option::of("[ -+.-~]{1,20}"),
            queues in 1..=MAX_QUEUES,
            direct: bool,
            uuid in proptest::option::of(any::<u128>().prop_map(Uuid::from_u128)),
            path in proptest::option::of("[ -~äß]{1,80}"),
        ) -> DeviceConfig {
            let mode = if read_only { Mode::ReadOnly } else { Mode::ReadWrite };
            DeviceConfig { device_type, mode, serial, queues, direct, uuid, path }
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(config in configs()) {
            prop_assert_eq!(config.to_string().parse(), Ok(config));
        }

        #[test]
        fn what_is_read_is_printed_in_a_form_that_reads_the_same(line in "(type|mode|queues|path)=[a-z0-9,=]{0,8}(,type=blk)?") {
            if let Ok(config) = line.parse::<DeviceConfig>() {
                prop_assert_eq!(config.to_string().parse(), Ok(config));
            }
        }
    }
}
