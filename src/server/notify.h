#pragma once
// What systemd wants to hear from a service of Type=notify (sd_notify(3)): a datagram to the socket that NOTIFY_SOCKET
// names. Without one, nothing happens.

void ew_notify(const char *state); // "READY=1", "WATCHDOG=1", "STOPPING=1"
double ew_notify_watchdog_s(void); // how often it must be told that we live; 0: it does not ask
