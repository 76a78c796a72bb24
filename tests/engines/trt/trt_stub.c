/* Stands in for the libraries of TensorRT, so that its Python bindings can be imported and their names be listed.
   Nothing can be built or run with it. */
#define STUB(name) void *name(void) { return 0; }
STUB(createInferBuilder_INTERNAL)
STUB(createInferRefitter_INTERNAL)
STUB(createInferRuntime_INTERNAL)
STUB(createNvOnnxParserRefitter_INTERNAL)
STUB(createNvOnnxParser_INTERNAL)
STUB(getBuilderPluginRegistry)
STUB(getPluginRegistry)
STUB(initLibNvInferPlugins)
STUB(getInferLibVersion)
STUB(getNvOnnxParserVersion)
