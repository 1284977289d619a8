// A GPU that is not there: torch's CPU build asks devices for guards, streams and hooks before it hands a fake tensor
// on, and these answer that there is one device on which nothing has to be done. No memory, no kernel.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

constexpr DeviceType CUDA = DeviceType::CUDA;

class NoGuard final : public c10::impl::DeviceGuardImplInterface {
  static Device only() { return Device(CUDA, 0); }
  static Stream stream() { return Stream(Stream::DEFAULT, only()); }

 public:
  DeviceType type() const override { return CUDA; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return only(); }
  Device exchangeDevice(Device) const override { return only(); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const override { return stream(); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};

class NoHooks final : public at::CUDAHooksInterface {
 public:
  explicit NoHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
};

c10::impl::DeviceGuardImplRegistrar guard(CUDA, new NoGuard);

}  // namespace

namespace at {
namespace {
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", NoHooks)
}
}  // namespace at
