// What the sources of the imitated npu share. device.cc says what it is and what it is not.
#pragma once

struct C_DeviceInterface;

namespace host_npu {

// Return the host memory behind a pointer into device memory; ends the process for any other one.
void* HostMemory(const void* pointer);

// Fill in the collectives of the interface.
void SetCollectives(C_DeviceInterface* interface);

}  // namespace host_npu
