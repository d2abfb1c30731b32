# Login shells of Grid Engine's qlogin and qrsh start without their job's variables: here they get ours.
if [ -z "${CUDA_VISIBLE_DEVICES-}" ] && [ -r /run/gpu-nodeagent/sge-spool ]; then
    eval "$(/usr/libexec/gpu-nodeagent/prolog/sge-login 2>/dev/null)"
fi
