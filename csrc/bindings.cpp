// The only CPU file that knows torch: checks tensors, hands raw pointers to the kernels in cpu/, and
// registers them as implementations of the operators whose schemas are declared in kernels/*/op.py.
#include <Python.h>

// `import tarq._C` loads this library, whose static initialisers register the operators; the module is empty.
extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                               nullptr};
  return PyModule_Create(&module);
}
